"""Kernels of the backward pass on sums that are exact, bit for bit: every geometry, orientation and option."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.modules import modules
from tests.kernels.triton.common import (
    BLOCKS,
    CONV2D,
    DTYPES,
    LINEAR,
    Layer,
    convolutions,
    device_for,
    each,
    exact_layer,
    examples,
    expected_grad_w,
    expected_grad_x,
    run,
    small_maps,
)
from ttfs_kernels import Neuron
from ttfs_kernels.triton_backend import passes, work
from ttfs_kernels.triton_backend.configs import Config
from ttfs_kernels.triton_backend.launch import Device
from ttfs_kernels.triton_backend.problem import Problem

(kernels_layers,) = modules("_kernels_layers")

ARCHITECTURES = pytest.mark.parametrize("architecture", [80, 90])
SURROGATES = pytest.mark.parametrize("surrogate_width", [0.0, 0.5])
SLOPES = pytest.mark.parametrize("with_slope", [True, False])


def check_grad_x(layer: Layer, config: Config, precision: str = "ieee") -> None:
    problem, x, weight, _, h, _ = layer
    (grad_x,) = run(lambda: passes.grad_x(problem, h, x, weight, config, precision), layer)
    assert torch.equal(grad_x, expected_grad_x(layer))


def check_grad_w(layer: Layer, config: Config, device: Device, precision: str = "ieee") -> None:
    problem, x, _, _, h, slope_h = layer
    late = slope_h if problem.with_slope else None
    (grad_w,) = run(lambda: passes.grad_w(problem, h, late, x, config, precision, device), layer)
    assert torch.equal(grad_w, expected_grad_w(layer))


@each(LINEAR | CONV2D)
def test_grad_x_is_exact(device, problem, dtype, blocks):
    check_grad_x(exact_layer(dataclasses.replace(problem, dtype=dtype), device), blocks)


@ARCHITECTURES
@each(LINEAR | CONV2D)
def test_grad_w_is_exact(device, problem, dtype, blocks, architecture):
    layer = exact_layer(dataclasses.replace(problem, dtype=dtype), device)
    check_grad_w(layer, blocks, device_for(device, architecture))


@SLOPES
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["short", "few_channels", "even_channels", "groups"])
def test_grad_x_takes_every_option(device, name, dtype, with_slope):
    problem = dataclasses.replace((LINEAR | CONV2D)[name], dtype=dtype, with_slope=with_slope)
    check_grad_x(exact_layer(problem, device), BLOCKS[1])


@SLOPES
@ARCHITECTURES
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["short", "few_channels", "even_channels", "groups"])
def test_grad_w_takes_every_option(device, name, dtype, with_slope, architecture):
    problem = dataclasses.replace((LINEAR | CONV2D)[name], dtype=dtype, with_slope=with_slope)
    check_grad_w(exact_layer(problem, device), BLOCKS[1], device_for(device, architecture))


@ARCHITECTURES
@pytest.mark.parametrize("splits", [0, 1, 3, 100])
@pytest.mark.parametrize("name", ["tall", "few_channels", "even_channels", "groups", "depthwise"])
def test_grad_w_is_exact_in_splits(device, monkeypatch, name, splits, architecture):
    """Splits of one step, so that few positions make many; 0 is one for every free processor."""
    monkeypatch.setattr(work, "STEPS_PER_SPLIT", 1)
    monkeypatch.setattr(work, "PART_ROWS", 0)
    problem = dataclasses.replace((LINEAR | CONV2D)[name], dtype=torch.float16)
    layer = exact_layer(problem, device)
    config = dataclasses.replace(BLOCKS[0], splits=splits)
    processors = device_for(device, architecture, processors=100)
    plan = passes.grad_w(problem, layer.h, layer.slope_h, layer.x, config, "ieee", processors)
    assert len(plan.launches) == (1 if splits == 1 else 2)
    check_grad_w(layer, config, processors)


@examples(40)
@given(
    problem=convolutions(),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    blocks=st.sampled_from(BLOCKS),
    with_slope=st.booleans(),
    splits=st.integers(0, 3),
    by_position=st.booleans(),
)
@ARCHITECTURES
def test_gradients_are_exact_anywhere(device, architecture, problem, dtype, blocks, with_slope, splits, by_position):
    layer = exact_layer(dataclasses.replace(problem, dtype=dtype, with_slope=with_slope), device)
    config = dataclasses.replace(blocks, splits=splits, by_position=by_position)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "STEPS_PER_SPLIT", 1)
        check_grad_x(layer, config)
        check_grad_w(layer, config, device_for(device, architecture))


@examples(15)
@given(problem=small_maps(), blocks=st.sampled_from(BLOCKS), splits=st.sampled_from([0, 1, 2, 5]))
@ARCHITECTURES
def test_gradients_by_position_are_exact(device, architecture, problem, blocks, splits):
    """Taps then have splits of one length, some fewer than others."""
    layer = exact_layer(dataclasses.replace(problem, dtype=torch.float16), device)
    config = dataclasses.replace(blocks, splits=splits, by_position=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "STEPS_PER_SPLIT", 1)
        check_grad_x(layer, config)
        check_grad_w(layer, config, device_for(device, architecture))


@SURROGATES
@SLOPES
@pytest.mark.parametrize("splits", [0, 1, 3])
@pytest.mark.parametrize("name", ["tall", "wide"])
def test_grad_x_of_linear_layers_is_exact_in_splits(device, monkeypatch, name, splits, with_slope, surrogate_width):
    """0 splits are as many as fill the processors: two steps each."""
    monkeypatch.setattr(work, "STEPS_PER_SPLIT", 1)
    monkeypatch.setattr(work, "PART_ROWS", 0)
    problem = dataclasses.replace(LINEAR[name], dtype=torch.float16, with_slope=with_slope)
    layer = exact_layer(problem, device)
    config = dataclasses.replace(BLOCKS[0], splits=splits)
    slope_h = layer.slope_h if surrogate_width and with_slope else None

    def grad_x(config: Config):
        _, x, weight, _, h, _ = layer
        return passes.grad_x(problem, h, x, weight, config, "ieee", slope_h, Neuron(surrogate_width=surrogate_width))

    plan = grad_x(config)
    assert len(plan.launches) == (1 if splits == 1 else 2)
    (ours,) = run(lambda: grad_x(config), layer)
    (whole,) = run(lambda: grad_x(dataclasses.replace(config, splits=1)), layer)
    assert torch.equal(ours, whole)
    if slope_h is None:
        assert torch.equal(ours, expected_grad_x(layer))


@pytest.mark.parametrize("name", ["gaps", "gaps_many_channels"])
def test_inputs_that_no_field_reaches_have_no_gradient(device, name):
    """Between fields that are further apart than they are large; every element is still written."""
    problem = dataclasses.replace(CONV2D[name], with_slope=False)
    layer = exact_layer(problem, device)
    (grad_x,) = run(lambda: passes.grad_x(problem, layer.h, layer.x, layer.weight, BLOCKS[0], "ieee"), layer)
    reached = [
        [i % step < taps and i < (size - taps) // step * step + taps for i in range(size)]
        for size, taps, step in zip((problem.height, problem.width), problem.kernel, problem.stride, strict=True)
    ]
    outside = ~torch.tensor(reached[0])[:, None] | ~torch.tensor(reached[1])[None, :]
    assert outside.any()
    assert not grad_x[:, outside].any()


def test_no_positions_give_a_weight_gradient_of_zero(device):
    layer = exact_layer(CONV2D["empty"], device)
    problem, x, weight, _, h, slope_h = layer
    (grad_w,) = run(lambda: passes.grad_w(problem, h, slope_h, x, BLOCKS[0], "ieee", device_for(device, 90)), layer)
    assert grad_w.shape == weight.shape
    assert not grad_w.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("persistence", "clip"), [(1.0, 11.0), (0.3, 0.5), (0.3, float("inf")), (0.0, float("inf"))])
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (3, 17), (65, 3), (300, 17), (17, 130), (0, 5)])
@pytest.mark.parametrize("programs", [256, 3])
def test_local_gradient_is_exact(device, monkeypatch, rows, channels, dtype, persistence, clip, programs):
    """h = g·min(gain, clip) and slope_h = σ·g·min((1 − a)·gain, clip); grad_bias sums what was stored of h."""
    monkeypatch.setattr(passes, "TILE", 256 if programs == 3 else 4096)
    monkeypatch.setattr(passes, "ROW_PROGRAMS", programs)
    problem = Problem(rows, 1, 1, 1, channels, dtype=dtype, with_slope=persistence != 0)
    layer = exact_layer(problem, device)
    grad = layer.h
    y = layer.slope_h.clamp_(0, 1)
    gain = torch.where((y > 0) & (y < 1), torch.randint(1, 20, y.shape).to(y), 0.0)
    layer = layer._replace(weight=gain)  # so that it is watched
    if persistence == 0:
        gain = None

    precise = [t.float().cpu() for t in (grad, y, layer.weight)]
    if gain is None:
        expected, expected_slope_h = torch.where((precise[1] > 0) & (precise[1] < 1), precise[0], 0.0), None
    else:
        expected = precise[0] * precise[2].clamp_max(clip)
        expected_slope_h = persistence * (precise[0] * ((1 - precise[1]) * precise[2]).clamp_max(clip))
    expected = expected.to(dtype)

    def local(with_slope_h: bool, with_bias: bool):
        return run(
            lambda: passes.local_gradient(problem, grad, y, gain, Neuron(persistence, clip), with_slope_h, with_bias),
            layer,
        )

    pair, grad_bias = local(True, True)
    h, slope_h = passes.halves(pair)
    assert torch.equal(h, expected)
    assert grad_bias.dtype == torch.float32
    assert torch.equal(grad_bias, expected.double().sum((0, 1, 2)).float())
    if expected_slope_h is None:
        assert slope_h is None
    else:
        assert torch.equal(slope_h, expected_slope_h.to(dtype))
    pair, grad_bias = local(False, False)
    h, slope_h = passes.halves(pair)
    assert torch.equal(h, expected)
    assert slope_h is None
    assert grad_bias is None


def test_bias_gradients_of_large_layers_are_summed_in_parallel():
    """Few enough programs along the rows for one tile to sum them, and more than one channel block for that tile."""
    for rows, channels in ((256 * 32 * 32, 64), (256 * 4 * 4, 512), (256, 4096)):
        problem = Problem(rows, 1, 1, 32, channels, dtype=torch.bfloat16)
        first, second = kernels_layers.plan_pass(
            "local_gradient", problem, None, "ieee", device_for(torch.device("cpu"), 90)
        ).launches
        assert math.prod(first.grid) >= min(passes.ROW_PROGRAMS, rows * channels // passes.TILE)
        assert second.arguments["splits"] == first.grid[0] <= passes.ROW_PROGRAMS
        assert second.arguments["splits"] <= second.arguments["ROWS"]
        assert second.grid[0] >= min(passes.FULL_GRID, channels // 16)


@given(splits=st.integers(1, 300), size=st.integers(1, 3000))
@examples(30)
def test_sums_over_splits_are_exact(device, splits, size):
    parts = (torch.randint(-8, 9, (splits, size)) / 8).to(device)
    out = torch.full((size,), torch.nan, device=device)
    passes.sum_parts(parts, out).run()
    assert torch.equal(out, parts.double().sum(0).float())
