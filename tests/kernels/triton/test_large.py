"""Many launches of layers large enough for default blocks, in bfloat16: finds faults that only a GPU can have.

Whole blocks use tensor cores, asynchronous copies and barriers; a race may show in one launch of many. All sums are
exact, so every launch must equal float64 bit for bit. TTFS_REPEATS is the number of launches, 1,000 if unset.
"""

import dataclasses
import os
from functools import partial

import pytest
import torch

from tests.kernels.memory import fenced_memory
from tests.kernels.triton.common import compute, exact_layer, expected, run
from ttfs_kernels import Neuron
from ttfs_kernels.triton.layer import blocks_for
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


@pytest.mark.gpu
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("name", LARGE)
def test_default_blocks_are_exact_in_every_launch(device, name, which):
    which, *surrogate = which.split(maxsplit=1)
    neuron = Neuron(surrogate_width=0.5 if surrogate else 0.0)
    layer = exact_layer(dataclasses.replace(LARGE[name], dtype=torch.bfloat16, surrogate=bool(surrogate)), device)
    config = blocks_for(which, layer.problem, device)
    expected_results = [tensor.to(device) for tensor in expected(which, layer, neuron)]
    run(partial(compute, which, layer, config, neuron), layer)  # its operands do not change
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    for _ in range(REPEATS):
        with fenced_memory():
            results = compute(which, layer, config, neuron)
        for result, right in zip(results, expected_results, strict=True):
            assert result is not None
            wrong += (result.view_as(right) != right).sum()  # NaN where nothing was written
    assert wrong == 0
