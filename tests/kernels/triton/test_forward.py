"""Forward kernels on exact potentials, bit for bit: every form, geometry and option."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.triton.common import (
    BLOCKS,
    CONV2D,
    DTYPES,
    LINEAR,
    PERSISTENCES,
    Layer,
    allowed_forms,
    chip_for,
    convolutions,
    each,
    exact_layer,
    examples,
    expected_forward,
    fenced,
    run,
    small_maps,
)
from ttfs_kernels import Neuron
from ttfs_kernels.triton_backend import passes
from ttfs_kernels.triton_backend.configs import Config
from ttfs_kernels.triton_backend.formulation import Chip, Form
from ttfs_kernels.triton_backend.problem import Problem


def check_forward(
    layer: Layer,
    config: Config,
    chip: Chip,
    persistence: float = 1.0,
    bias: Tensor | None = None,
    with_derivatives: bool = True,
    precision: str = "ieee",
) -> None:
    problem = layer.problem
    y, gain = run(
        lambda: passes.forward(
            problem, layer.x, layer.weight, bias, Neuron(persistence), with_derivatives, config, precision, chip
        ),
        layer,
    )
    expected_y, expected_gain = expected_forward(layer, persistence, bias is not None)
    assert torch.equal(y, expected_y)
    assert (gain is not None) == (with_derivatives and problem.with_slope)
    if gain is not None:
        assert torch.equal(gain, expected_gain)


@pytest.mark.parametrize("form", Form)
@each(LINEAR | CONV2D)
def test_forward_is_exact(device, problem, dtype, blocks, form):
    layer = exact_layer(dataclasses.replace(problem, dtype=dtype), device)
    check_forward(layer, dataclasses.replace(blocks, form=form), chip_for(device, form), bias=layer.bias)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("persistence", PERSISTENCES)
@pytest.mark.parametrize(("has_bias", "with_derivatives"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("name", ["short", "few_channels", "groups"])
def test_forward_takes_every_option(device, name, dtype, form, persistence, has_bias, with_derivatives):
    problem = dataclasses.replace((LINEAR | CONV2D)[name], dtype=dtype, with_slope=persistence != 0)
    layer = exact_layer(problem, device)
    config = dataclasses.replace(BLOCKS[1], form=form)
    chip = chip_for(device, form)
    check_forward(layer, config, chip, persistence, layer.bias if has_bias else None, with_derivatives)


@examples(60)
@given(
    problem=convolutions(),
    form=st.deferred(lambda: st.sampled_from(allowed_forms())),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    blocks=st.sampled_from(BLOCKS),
    persistence=st.sampled_from(PERSISTENCES),
    by_position=st.booleans(),
)
def test_forward_is_exact_anywhere(device, problem, form, dtype, blocks, persistence, by_position):
    layer = exact_layer(dataclasses.replace(problem, dtype=dtype, with_slope=persistence != 0), device)
    config = dataclasses.replace(blocks, form=form, by_position=by_position)
    check_forward(layer, config, chip_for(device, form), persistence)


@examples(15)
@given(problem=small_maps(), form=st.sampled_from(Form), blocks=st.sampled_from(BLOCKS))
def test_forward_by_position_is_exact(device, problem, form, blocks):
    layer = exact_layer(dataclasses.replace(problem, dtype=torch.float16), device)
    check_forward(layer, dataclasses.replace(blocks, form=form, by_position=True), chip_for(device, form))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_forward_takes_a_bias_of_any_dtype(device, dtype):
    layer = exact_layer(LINEAR["short"], device)
    form = Form.WEIGHTS_FIRST
    config = dataclasses.replace(BLOCKS[0], form=form)
    check_forward(layer, config, chip_for(device, form), bias=layer.bias.to(dtype))


def test_forward_takes_tensors_anywhere_in_memory(device):
    """Not aligned to 16 bytes, as slices of a batch may be."""
    layer = exact_layer(LINEAR["wide"], device)
    odd = [fenced(torch.cat([t.flatten()[:1], t.flatten()]))[1:].view(t.shape) for t in layer[1:]]
    config = dataclasses.replace(BLOCKS[2], form=Form.WEIGHTS_FIRST)
    layer = Layer(layer.problem, *odd)
    assert layer.x.data_ptr() % 16
    check_forward(layer, config, chip_for(device, Form.WEIGHTS_FIRST), bias=layer.bias)


def test_gain_of_float16_ends_at_its_largest_number(device):
    """1 + W = 2⁻¹⁷, so that gain = 2¹⁷; the neuron crosses in the middle of the window."""
    problem = Problem(1, 1, 1, 2, 1, dtype=torch.float16)
    x = torch.ones(1, 1, 1, 2, dtype=torch.float16, device=device)
    weight = torch.tensor([-1.0, 2.0**-17], dtype=torch.float16, device=device).view(1, 1, 1, 2)
    bias = torch.tensor([2.0 - 2.0**-17 - 2.0**-18], device=device)
    form = Form.WEIGHTS_FIRST
    config = dataclasses.replace(BLOCKS[0], form=form)
    y, gain = passes.forward(problem, x, weight, bias, Neuron(), True, config, "ieee", chip_for(device, form)).run()
    assert y.item() == 0.5
    assert gain.item() == 65504


@pytest.mark.parametrize("name", ["wide", "uneven_channels"])
def test_neurons_with_nan_inputs_are_nan(device, name):
    """A diverged network must show: NaN is neither silence nor a spike."""
    layer = exact_layer((LINEAR | CONV2D)[name], device)
    layer.x[0] = float("nan")
    form = Form.WEIGHTS_FIRST
    config = dataclasses.replace(BLOCKS[0], form=form)
    chip = chip_for(device, form)
    y = passes.forward(layer.problem, layer.x, layer.weight, None, Neuron(), False, config, "ieee", chip).run()[0]
    assert y[0].isnan().all()


def test_no_neurons_need_no_launch(device):
    problem = CONV2D["empty"]
    layer = exact_layer(problem, device)
    config = dataclasses.replace(BLOCKS[0], form=Form.WEIGHTS_FIRST)
    plan = passes.forward(problem, layer.x, layer.weight, None, Neuron(), True, config, "ieee", Chip("cuda", 80))
    assert plan.launches == []


@pytest.mark.parametrize("by_position", [False, True])
def test_images_of_a_block_must_have_offsets_of_32_bits(by_position):
    """2048 images of 128×128×64 are 2³¹ elements, which is no matter; 16 images of one block may not be."""
    config = dataclasses.replace(BLOCKS[2], form=Form.WEIGHTS_FIRST, by_position=by_position)

    def plan(batch: int, side: int) -> None:
        problem = Problem(batch, side, side, 64, 64, (3, 3), padding=(1, 1))
        x = torch.empty(batch, side, side, 64, device="meta")
        weight = torch.empty(64, 3, 3, 64, device="meta")
        passes.forward(problem, x, weight, None, Neuron(), True, config, "ieee", Chip("cuda", 80))

    plan(2048, 128)
    with pytest.raises(NotImplementedError, match="forward: the images of a block must have fewer than 2³¹ elements"):
        plan(1, 8192)
