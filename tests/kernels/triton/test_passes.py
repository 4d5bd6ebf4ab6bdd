"""Every pass of our kernels on exact sums, bit for bit: each geometry, split and option."""

import dataclasses
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.triton.common import BLOCKS, DTYPES, compute, exact_layer, examples, expected, problems, run
from ttfs_kernels import Neuron
from ttfs_kernels.triton import blocks, neurons
from ttfs_kernels.triton.contractions import contract
from ttfs_kernels.triton.neurons import COUNT, MEAN, SCALE, SQUARES, statistics_of
from ttfs_kernels.triton.problem import PASSES, Problem


@pytest.mark.parametrize("which", [*PASSES, "inference"])
@examples(105)
@given(problem=problems, data=st.data())
def test_contractions_are_exact(device, which, problem, data):
    """Tensors may start anywhere in memory, as slices of a batch do.

    Splits are of one step, so that few positions make many; 0 is one for every free processor.
    """

    def draw(*values: Any) -> Any:
        return data.draw(st.sampled_from(values))

    forward = which in ("forward", "inference")
    sigma = draw(1.0, 0.0, 0.5, 0.3)  # multiples of 0.3 are rounded in x + 0.3
    shared = not forward and sigma in (0.5, 1.0) and draw(False, True)
    neuron = Neuron(sigma, surrogate_width=0.0 if forward else draw(0.0, 0.5), split_gradient=float(not shared))
    flags = {"with_slope": neuron.has_slope, "surrogate": neuron.has_surrogate, "dtype": draw(*DTYPES)}
    problem = dataclasses.replace(problem, **flags, shared=shared)
    layer, bias = exact_layer(problem, device, shift=draw(0, 1)), draw(None, *DTYPES, torch.float64)
    layer = layer._replace(bias=None if bias is None else layer.bias.to(bias))
    options = {"splits": draw(0, 1, 2, 3, 5, 100), "by_position": draw(False, True), "inputs_first": draw(False, True)}
    config = dataclasses.replace(draw(*BLOCKS), **options, processors=100)
    with patch.object(blocks, "STEPS_PER_SPLIT", 1), patch.object(blocks, "PART_ROWS", 0):
        found = run(partial(compute, which, layer, config, neuron), layer)
    if which == "forward":
        assert (found[1] is None) == (sigma == 0)
    for one, other in zip(found, expected(which, layer, neuron), strict=True):
        if one is not None:
            torch.testing.assert_close(one.view_as(other), other, rtol=0, atol=0)


@examples(36)
@given(problem=problems, data=st.data())
def test_statistics_are_those_of_the_stored_potentials_in_every_run(device, problem, data):
    """Against float64. Few parts are merged at a time, so that there are several stages of programs."""
    neuron = Neuron(data.draw(st.sampled_from([0.0, 0.3, 1.0])))
    dtype, by_position, first = (data.draw(st.sampled_from(some)) for some in (DTYPES, [False, True], [False, True]))
    problem = dataclasses.replace(problem, dtype=dtype, with_slope=neuron.has_slope)
    layer, config = exact_layer(problem, device), data.draw(st.sampled_from(BLOCKS))
    config = dataclasses.replace(config, by_position=by_position, inputs_first=first)
    layer = layer._replace(weight=layer.weight + data.draw(st.sampled_from([0, 8])))
    gamma, beta = torch.rand(2, problem.out_channels, device=device)

    def pass_() -> tuple[Tensor | None, ...]:
        A, W, parts = contract(problem, layer.x, layer.weight, config, dtype, neuron)
        return A, W, statistics_of(parts, gamma, beta, 1e-5, None)

    with patch.object(neurons, "MOST_PARTS", 3), patch.object(neurons, "LANES", 2):
        (A, W, found), again = run(pass_, layer), run(pass_, layer)
    assert torch.equal(found, again[-1])
    V = A.double() if W is None else A.double() + neuron.psp_persistence * W.double()
    V = V.flatten(0, 2)
    mean = V.mean(0).nan_to_num()  # NaN of no images
    squares = (V - mean).square().sum(0)
    scale = gamma.cpu() / (squares / max(1, len(V)) + 1e-5).sqrt()
    assert (found[COUNT.value] == len(V)).all()
    for row, wanted in ((MEAN, mean), (SQUARES, squares), (SCALE, scale)):
        torch.testing.assert_close(found[row.value].double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by_position", [False, True])
def test_images_of_a_block_must_have_offsets_of_32_bits(by_position):
    """2048 images of 128×128×64 are 2³¹ elements, which is no matter; 16 images of one block may not be."""
    config = dataclasses.replace(BLOCKS[0], by_position=by_position)
    many, large = (Problem(batch, side, side, 64, 64, (3, 3)) for batch, side in ((2048, 128), (1, 8192)))
    blocks.plan("forward", many, config)
    with pytest.raises(NotImplementedError, match="forward: the images of a block must have fewer than 2³¹ elements"):
        blocks.plan("forward", large, config)
