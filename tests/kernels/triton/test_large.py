"""Many launches of layers large enough for default blocks, in bfloat16: finds faults that only a GPU can have.

Whole blocks use tensor cores, asynchronous copies and barriers; a race may show in one launch of many. All sums are
exact, so every launch must equal float64 bit for bit. TTFS_REPEATS is the number of launches, 1,000 if unset.
"""

import dataclasses
import os
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.kernels.memory import fenced_memory
from tests.kernels.triton.common import Layer, compute, exact_layer, expected, run
from ttfs_kernels import Neuron
from ttfs_kernels.triton.blocks import blocks_for
from ttfs_kernels.triton.problem import Problem

REPEATS = int(os.environ.get("TTFS_REPEATS", "1000"))
THREE = {"kernel": (3, 3), "padding": (1, 1)}
LARGE = {
    "narrow": Problem(16, 32, 32, 64, 64, **THREE),
    "first_layer": Problem(16, 32, 32, 3, 64, **THREE),
    "wide": Problem(64, 8, 8, 256, 256, **THREE),
    "small_maps": Problem(256, 2, 2, 512, 512, **THREE),
    "stride": Problem(64, 16, 16, 128, 256, **THREE, stride=(2, 2)),
    "uneven_stride": Problem(32, 15, 17, 64, 128, (3, 3), (3, 2), (1, 0)),
    "four_channels": Problem(64, 8, 8, 100, 100, **THREE),
    "odd_channels": Problem(64, 8, 8, 97, 129, **THREE),
    "groups": Problem(64, 8, 8, 128, 128, **THREE, groups=2),
    "dilation": Problem(64, 8, 8, 64, 64, (3, 3), padding=(2, 2), dilation=(2, 2)),
    "one_tap": Problem(64, 8, 8, 128, 256),
    "linear": Problem(256, 1, 1, 512, 4096),
    "odd_linear": Problem(255, 1, 1, 1001, 503),
    # The last batch of a data set is smaller.
    "last_batch": Problem(100, 4, 4, 256, 512, **THREE),
    "last_image": Problem(1, 8, 8, 256, 256, **THREE),
    "last_row": Problem(1, 1, 1, 4096, 4096),
    # Small enough for a sanitiser.
    "sanitised_conv2d": Problem(4, 8, 8, 64, 128, **THREE),
    "sanitised_stride": Problem(4, 9, 8, 72, 64, **THREE, stride=(2, 2)),
    "sanitised_linear": Problem(128, 1, 1, 192, 130),
}
PASSES = ("forward", "grad_x", "grad_x with surrogate", "grad_w")


Pass = Callable[[], tuple[Tensor | None, ...]]


def defaults(name: str, problem: Problem, device: torch.device) -> tuple[Pass, Layer, tuple[Tensor, ...]]:
    """A pass with its default blocks, the layer, and what is right."""
    which, *surrogate = name.split(maxsplit=1)
    layer = exact_layer(dataclasses.replace(problem, surrogate=bool(surrogate)), device)
    neuron = Neuron(surrogate_width=0.5 if surrogate else 0.0)
    config = blocks_for(which, layer.problem, device)
    return partial(compute, which, layer, config, neuron), layer, expected(which, layer, neuron)


def differing(pass_: Pass, right: tuple[Tensor, ...], repeats: int) -> int:
    """Elements that are not right, over all launches; results hold NaN before each."""
    wrong = 0
    for _ in range(repeats):
        with fenced_memory():
            outputs = pass_()
        for output, tensor in zip(outputs, right, strict=True):
            assert output is not None
            wrong = wrong + (output.view_as(tensor) != tensor.to(output.device)).sum()
    return int(wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("name", LARGE)
def test_default_blocks_are_exact_in_every_launch(device, name, which):
    pass_, layer, right = defaults(which, dataclasses.replace(LARGE[name], dtype=torch.bfloat16), device)
    for found, tensor in zip(run(pass_, layer), right, strict=True):
        assert torch.equal(found.view_as(tensor), tensor)
    assert differing(pass_, tuple(tensor.to(device) for tensor in right), REPEATS) == 0
