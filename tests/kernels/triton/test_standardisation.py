"""The kernels of weight standardisation: one launch for all layers, of any sizes, that writes nothing else."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ttfs_kernels
from tests.kernels.test_standardise import check, layers
from tests.kernels.triton.common import examples, fenced_memory
from ttfs_kernels import standardise_weights
from ttfs_kernels.triton_backend import standardisation
from ttfs_kernels.triton_backend.launch import Launch


@pytest.fixture(autouse=True)
def _kernel() -> None:
    """In the interpreter too; conftest takes the choice back."""
    ttfs_kernels.backend("triton")


@examples(20)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 5), st.integers(2, 5), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=7
    ),
    channels_last=st.booleans(),
    block=st.sampled_from([16, 1024]),
    group=st.integers(1, 8),
)
def test_any_layers_in_any_number_of_launches(device, shapes, channels_last, block, group):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standardisation, "BLOCK", block)
        patch.setattr(standardisation, "LAYERS", group)
        weights, gains = layers(shapes, device, channels_last=channels_last)
        check(weights, gains)
        expected = standardise_weights(weights, gains)
        with fenced_memory() if not channels_last else nullcontext():  # whose tensors are contiguous
            assert all(map(torch.equal, standardise_weights(weights, gains), expected))


def test_one_launch_forward_and_one_backward(device, monkeypatch):
    """Of all layers of a VGG16, and no call of anything else that computes."""
    names, real_run = [], Launch.run
    monkeypatch.setattr(Launch, "run", lambda self: names.append(self.kernel.__name__) or real_run(self))
    weights, gains = layers(((2, 3),) * 16, device)
    results = standardise_weights(weights, gains)
    torch.autograd.grad(results, [*weights, *gains], [torch.ones_like(result) for result in results])
    assert names == ["standardise", "standardise_backward"]
