"""Every pass of our kernels on exact sums, bit for bit: each geometry, split and option."""

import dataclasses
import math
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.modules import modules
from tests.kernels.triton.common import (
    BLOCKS,
    DTYPES,
    device_for,
    exact_layer,
    examples,
    expected,
    plan,
    problems,
    run,
)
from ttfs_kernels import Neuron
from ttfs_kernels.triton_backend import passes, planning
from ttfs_kernels.triton_backend.formulation import Chip
from ttfs_kernels.triton_backend.launch import INTERPRETING, Device
from ttfs_kernels.triton_backend.problem import PASSES, Problem

(kernels_layers,) = modules("_kernels_layers")


def blocks_of_products() -> AbstractContextManager[Any]:
    """Counts those that the interpreter is asked for."""
    from triton.runtime.interpreter import interpreter_builder

    return patch.object(interpreter_builder, "create_dot", wraps=interpreter_builder.create_dot)


@pytest.mark.parametrize("which", PASSES)
@examples(180)
@given(problem=problems, data=st.data())
def test_contractions_are_exact(device, which, problem, data):
    """Tensors may start anywhere in memory, as slices of a batch do.

    Splits are of one step, so that few positions make many; 0 is one for every free processor. As many operations are
    executed as planning counts.
    """

    def draw(*values: Any) -> Any:
        return data.draw(st.sampled_from(values))

    forward = which == "forward"
    skip = forward and draw(False, True)
    # Multiples of 0.3 are rounded before a skip's are added, and in x + 0.3.
    sigma = draw(1.0, 0.0, 0.5, 0.5 if skip else 0.3)
    shared = not forward and sigma in (0.5, 1.0) and draw(False, True)
    neuron = Neuron(sigma, surrogate_width=0.0 if forward else draw(0.0, 0.5), split_gradient=float(not shared))
    flags = {"with_slope": neuron.has_slope, "surrogate": neuron.has_surrogate, "dtype": draw(*DTYPES)}
    problem = dataclasses.replace(problem, **flags, skip=skip, shared=shared)
    layer, bias = exact_layer(problem, device, shift=draw(0, 1)), draw(None, *DTYPES, torch.float64)
    layer = layer._replace(bias=None if bias is None else layer.bias.to(bias))
    here = device_for(device, draw(80, 90), processors=100)
    options = {"splits": draw(0, 1, 2, 3, 5, 100), "by_position": draw(False, True)}
    config, derivatives = dataclasses.replace(draw(*BLOCKS), **options), draw(False, True)
    pass_ = partial(plan, which, layer, config, here, neuron, derivatives)
    with patch.object(planning, "STEPS_PER_SPLIT", 1), patch.object(planning, "PART_ROWS", 0):
        with blocks_of_products() as counted:
            found = run(pass_, layer)
    if INTERPRETING:
        shapes = [(*call.args[0].data.shape, call.args[1].data.shape[-1]) for call in counted.call_args_list]
        assert planning.executed_flops(which, problem, config) == 2 * sum(map(math.prod, shapes))
    wanted = expected(which, layer, neuron)
    if forward:
        assert [one is not None for one in found] == [True, derivatives and sigma > 0]
    for one, other in zip(found, wanted, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_gain_of_float16_ends_at_its_largest_number(device):
    """1 + W = 2⁻¹⁷, so that gain = 2¹⁷; the neuron crosses in the middle of the window."""
    problem = Problem(1, 1, 1, 2, 1, dtype=torch.float16)
    x = torch.ones(1, 1, 1, 2, dtype=torch.float16, device=device)
    weight = torch.tensor([-1.0, 2.0**-17], dtype=torch.float16, device=device).view(1, 1, 1, 2)
    bias = torch.tensor([2.0 - 2.0**-17 - 2.0**-18], device=device)
    y, gain = passes.forward(problem, x, weight, bias, Neuron(), True, BLOCKS[0], "ieee", device_for(device).chip).run()
    assert (y.item(), gain.item()) == (0.5, 65504)


@pytest.mark.parametrize("by_position", [False, True])
def test_images_of_a_block_must_have_offsets_of_32_bits(by_position):
    """2048 images of 128×128×64 are 2³¹ elements, which is no matter; 16 images of one block may not be."""
    config = dataclasses.replace(BLOCKS[0], by_position=by_position)

    def plan(batch: int, side: int) -> None:
        problem = Problem(batch, side, side, 64, 64, (3, 3), padding=(1, 1))
        kernels_layers.plan_pass("forward", problem, config, "ieee", Device("made up", Chip("cuda", 80), 108))

    plan(2048, 128)
    with pytest.raises(NotImplementedError, match="forward: the images of a block must have fewer than 2³¹ elements"):
        plan(1, 8192)
