"""Every pass on sums that are exact, bit for bit: each geometry, form, split and option, ours and the library's."""

import dataclasses
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.bench.modules import modules
from tests.kernels.triton.common import (
    BLOCKS,
    Layer,
    allowed_forms,
    chip_for,
    device_for,
    exact_layer,
    examples,
    expected_forward,
    expected_grad_w,
    expected_grad_x,
    fenced,
    problems,
    run,
)
from ttfs_kernels import Neuron
from ttfs_kernels.rule import vanishing
from ttfs_kernels.triton_backend import library, passes, work
from ttfs_kernels.triton_backend.configs import Config
from ttfs_kernels.triton_backend.formulation import Chip, Form
from ttfs_kernels.triton_backend.launch import Device, device_of
from ttfs_kernels.triton_backend.problem import Problem

(kernels_layers,) = modules("_kernels_layers")

PRECISIONS = st.sampled_from([torch.float32, torch.float16])
SURROGATE = Neuron(surrogate_width=0.5)
SAFE = dataclasses.replace(BLOCKS[0], form=Form.WEIGHTS_FIRST)
forms = st.deferred(lambda: st.sampled_from(allowed_forms()))


def forward(layer: Layer, neuron: Neuron, config: Config, chip: Chip, bias: Tensor | None, derivatives: bool = True):
    options = neuron, derivatives, config, "ieee", chip
    return run(lambda: passes.forward(layer.problem, layer.x, layer.weight, bias, *options, *layer.delayed), layer)


def check_forward(
    layer: Layer, config: Config, chip: Chip, sigma: float, bias: Tensor | None, derivatives: bool = True
):
    y, gain = forward(layer, Neuron(sigma), config, chip, bias, derivatives)
    expected_y, expected_gain = expected_forward(layer, sigma, bias is not None)
    assert torch.equal(y, expected_y)
    assert (gain is not None) == (derivatives and layer.problem.with_slope)
    assert gain is None or torch.equal(gain, expected_gain)


def check_gradients(layer: Layer, config: Config, device: Device) -> None:
    problem, x, weight, _, h, slope_h, *_ = layer
    late, surrogate = (slope_h if problem.with_slope else None), problem.surrogate
    (grad_x,) = run(
        lambda: passes.grad_x(problem, h, x, weight, config, "ieee", slope_h if surrogate else None, SURROGATE), layer
    )
    (grad_w,) = run(lambda: passes.grad_w(problem, h, late, x, config, "ieee", device), layer)
    assert torch.equal(grad_x, expected_grad_x(layer, SURROGATE))
    assert torch.equal(grad_w, expected_grad_w(layer))


@examples(90)
@given(
    problem=problems,
    form=forms,
    dtype=PRECISIONS,
    blocks=st.sampled_from(BLOCKS),
    sigma=st.sampled_from([1.0, 0.3, 0.0]),
    by_position=st.booleans(),
    has_bias=st.booleans(),
    derivatives=st.booleans(),
    skip=st.booleans(),
)
def test_forward_is_exact_anywhere(
    device, problem, form, dtype, blocks, sigma, by_position, has_bias, derivatives, skip
):
    sigma = 0.5 if skip and sigma else sigma  # of a third, with one more product, both backends round as they please
    problem = dataclasses.replace(problem, dtype=dtype, with_slope=sigma != 0, skip=skip)
    layer = exact_layer(problem, device)
    config = dataclasses.replace(blocks, form=form, by_position=by_position)
    check_forward(layer, config, chip_for(device, form), sigma, layer.bias if has_bias else None, derivatives)


@examples(70)
@given(
    problem=problems,
    dtype=PRECISIONS,
    blocks=st.sampled_from(BLOCKS),
    kind=st.sampled_from(["two-phase", "exact", "surrogate"]),
    splits=st.sampled_from([0, 1, 2, 3, 5, 100]),
    by_position=st.booleans(),
    architecture=st.sampled_from([80, 90]),
)
def test_gradients_are_exact_anywhere(device, problem, dtype, blocks, kind, splits, by_position, architecture):
    """Splits of one step, so that few positions make many; 0 is one for every free processor."""
    problem = dataclasses.replace(problem, dtype=dtype, with_slope=kind != "two-phase", surrogate=kind == "surrogate")
    config = dataclasses.replace(blocks, splits=splits, by_position=by_position)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "STEPS_PER_SPLIT", 1)
        patch.setattr(work, "PART_ROWS", 0)
        here = device_of(device) if device.type == "cuda" else device_for(device, architecture, processors=100)
        check_gradients(exact_layer(problem, device), config, here)


@pytest.mark.gpu
@examples(12)
@given(problem=problems)
def test_bfloat16_is_exact(device, problem):
    layer = exact_layer(dataclasses.replace(problem, dtype=torch.bfloat16), device)
    check_forward(layer, SAFE, chip_for(device, SAFE.form), 0.3, layer.bias)
    check_gradients(layer, SAFE, device_of(device))


@examples(45)
@given(
    problem=problems,
    form=forms,
    blocks=st.sampled_from(BLOCKS),
    sigma=st.sampled_from([1.0, 0.3, 0.0]),
    dtype=PRECISIONS,
)
def test_pools_pass_on_the_earliest_spikes(device, problem, form, blocks, sigma, dtype):
    """In the epilogue of the convolution, and in a kernel of its own. Of equals the first, as in max_pool2d."""
    problem = dataclasses.replace(problem, dtype=dtype, with_slope=sigma > 0, pool=2)
    assume(min(problem.out_size) >= 2)
    layer, config = exact_layer(problem, device), dataclasses.replace(blocks, form=form, by_position=True)
    fused = forward(layer, Neuron(sigma), config, chip_for(device, form), layer.bias)
    y, gain = expected_forward(layer, sigma, has_bias=True)
    ordered, places = windows(y, problem).sort(dim=-1, descending=True, stable=True)
    assert torch.equal(fused[0], ordered[..., 0])
    assert torch.equal(fused[2].long(), places[..., 0])
    if sigma:
        assert torch.equal(fused[1], windows(gain, problem).gather(-1, places[..., :1])[..., 0])
    kept = (y.to(device), gain.to(device) if sigma else None)
    apart = run(lambda: passes.pool(problem, *kept, True), layer)
    for ours, theirs in zip(fused, apart, strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


def windows(neurons: Tensor, problem: Problem) -> Tensor:
    """[B, P, Q, N] as [B, P / 2, Q / 2, N, 4]."""
    rows, columns = problem.pooled_size
    kept = neurons[:, : 2 * rows, : 2 * columns].unflatten(2, (columns, 2)).unflatten(1, (rows, 2))
    return kept.movedim(2, 3).flatten(3, 4).movedim(3, 4)


@examples(45)
@given(problem=problems, dtype=PRECISIONS, sigma=st.sampled_from([1.0, 0.25, 0.0]), skip=st.booleans())
def test_library_is_exact(device, problem, dtype, sigma, skip):
    problem = dataclasses.replace(problem, dtype=dtype, with_slope=sigma > 0, surrogate=sigma > 0, skip=skip)
    layer = exact_layer(problem, device)
    bias = layer.bias if skip else None
    neuron = Neuron(sigma, surrogate_width=0.5)
    operands = problem, layer.x, layer.weight, bias
    y, gain = run(lambda: library.forward(*operands, Neuron(sigma), True, *layer.delayed), layer)
    expected_y, expected_gain = expected_forward(layer, sigma, skip)
    assert_exact(y, expected_y, device)
    assert gain is None if sigma == 0 else assert_exact(gain, expected_gain, device)
    assert library.forward(*operands, Neuron(sigma), False, *layer.delayed)[1] is None
    pair = torch.stack([layer.h, layer.slope_h] if sigma > 0 else [layer.h])
    (grad_x,) = run(lambda: library.grad_x(problem, pair, layer.x, layer.weight, neuron), layer)
    (grad_w,) = run(lambda: library.grad_w(problem, pair, layer.x, layer.weight), layer)
    assert_exact(grad_x, expected_grad_x(layer, neuron), device)
    assert_exact(grad_w, expected_grad_w(layer), device)


def assert_exact(ours: Tensor, expected: Tensor, device: torch.device) -> bool:
    """Equal; on a GPU, whose library may round in between (Winograd), near, but for a few neurons at a border."""
    if device.type == "cpu":
        assert torch.equal(ours, expected)
    else:
        assert ours.shape == expected.shape
        tolerance = 8 * torch.finfo(ours.dtype).eps
        different = ~torch.isclose(ours, expected, rtol=tolerance, atol=tolerance)
        assert different.sum() <= 0.03 * different.numel()
    return True


@examples(60)
@given(
    shape=st.sampled_from([(1, 1), (3, 17), (65, 3), (300, 17), (17, 130), (0, 5)]),
    dtype=PRECISIONS,
    neuron=st.sampled_from([Neuron(0.5, None), Neuron(1.0), Neuron(0.5, 0.5), Neuron(0.0), Neuron(1.0, 1.5, 0.5)]),
    needs=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    few_programs=st.booleans(),
)
def test_local_gradient_is_exact(device, shape, dtype, neuron, needs, few_programs):
    """h = g·min(gain, clip) and slope_h = σ·g·min((1 − a)·gain, clip); sums are of what was stored."""
    rows, channels = shape
    problem = Problem(rows, 1, 1, 1, channels, dtype=dtype, with_slope=neuron.has_slope, skip=True)
    layer = exact_layer(problem, device)
    y = layer.slope_h.clamp_(0, 1)
    gain = torch.where((y > 0) & (y < 1), torch.randint(1, 20, y.shape).to(y), 0.0) if neuron.has_slope else None
    with_slope_h, with_bias, *of_skip = needs
    delayed = passes.Delayed(*layer.delayed, *of_skip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "TILE", 256 if few_programs else 4096)
        patch.setattr(passes, "ROW_PROGRAMS", 3 if few_programs else 256)
        options = neuron, with_slope_h, with_bias, None, delayed
        pair, *found = run(lambda: passes.local_gradient(problem, layer.h, y, gain, *options), layer)
        plain, _ = run(lambda: passes.local_gradient(problem, layer.h, y, gain, *options[:3]), layer)

    grad, a, spikes, v = (t.cpu().float() for t in (layer.h, y, layer.skip, layer.skip_weight))
    if gain is None:
        h, slope_h = torch.where((a > 0) & (a < 1), grad, 0.0), torch.zeros_like(grad)
    else:
        clip, steep = neuron.derivative_clip or math.inf, gain.cpu().float()
        h = grad * steep.clamp_max(clip)
        slope_h = neuron.psp_persistence * grad * ((1 - a) * steep).clamp_max(clip)
    stored = h.to(dtype).float()
    by_skip = torch.where(spikes > 0, stored * v, 0.0) if neuron.has_slope else stored * v
    by_skip = by_skip + slope_h * v * vanishing(spikes, neuron) if neuron.has_surrogate else by_skip
    by_weight = stored * spikes + slope_h * (spikes > 0)
    expected = [stored.double().sum((0, 1, 2)), by_skip, by_weight.double().sum((0, 1, 2))]
    assert torch.equal(plain, pair)
    assert torch.equal(pair[0].float(), stored)
    assert len(pair) == 1 + (with_slope_h and neuron.has_slope)
    assert len(pair) == 1 or torch.equal(pair[1], slope_h.to(dtype))
    for needed, ours, theirs, kind in zip(
        needs[1:], [found[0], *found[1:]], expected, ("sum", dtype, "sum"), strict=True
    ):
        assert (ours is not None) == needed
        assert ours is None or torch.equal(ours, theirs.to(torch.float32 if kind == "sum" else kind))


def test_bias_gradients_of_large_layers_are_summed_in_parallel():
    """Few enough programs along the rows for one tile to sum them, and more than one channel block for that tile."""
    hopper = Device("made up", Chip("cuda", 90), 132)
    for rows, channels in ((256 * 32 * 32, 64), (256 * 4 * 4, 512), (256, 4096)):
        problem = Problem(rows, 1, 1, 32, channels, dtype=torch.bfloat16)
        first, second = kernels_layers.plan_pass("local_gradient", problem, None, "ieee", hopper).launches
        assert math.prod(first.grid) >= min(passes.ROW_PROGRAMS, rows * channels // passes.TILE)
        assert second.arguments["splits"] == first.grid[0] <= min(passes.ROW_PROGRAMS, second.arguments["ROWS"])
        assert second.grid[0] >= min(passes.FULL_GRID, channels // 16)


@given(splits=st.integers(1, 300), size=st.integers(1, 3000))
@examples(30)
def test_sums_over_splits_are_exact(device, splits, size):
    parts = (torch.randint(-8, 9, (splits, size)) / 8).to(device)
    out = torch.full((size,), torch.nan, device=device)
    passes.sum_parts(parts, out).run()
    assert torch.equal(out, parts.double().sum(0).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_forward_takes_a_bias_of_any_dtype_and_tensors_anywhere_in_memory(device, dtype):
    """Not aligned to 16 bytes, as slices of a batch may be."""
    layer = exact_layer(Problem(17, 1, 1, 65, 33), device)
    odd = [fenced(torch.cat([t.flatten()[:1], t.flatten()]))[1:].view(t.shape) for t in layer[1:]]
    layer = Layer(layer.problem, *odd)
    assert layer.x.data_ptr() % 16
    check_forward(layer, SAFE, chip_for(device, SAFE.form), 1.0, layer.bias.to(dtype))


def test_gain_of_float16_ends_at_its_largest_number(device):
    """1 + W = 2⁻¹⁷, so that gain = 2¹⁷; the neuron crosses in the middle of the window."""
    problem = Problem(1, 1, 1, 2, 1, dtype=torch.float16)
    x = torch.ones(1, 1, 1, 2, dtype=torch.float16, device=device)
    weight = torch.tensor([-1.0, 2.0**-17], dtype=torch.float16, device=device).view(1, 1, 1, 2)
    bias = torch.tensor([2.0 - 2.0**-17 - 2.0**-18], device=device)
    y, gain = passes.forward(problem, x, weight, bias, Neuron(), True, SAFE, "ieee", chip_for(device, SAFE.form)).run()
    assert (y.item(), gain.item()) == (0.5, 65504)


@pytest.mark.parametrize("by_position", [False, True])
def test_images_of_a_block_must_have_offsets_of_32_bits(by_position):
    """2048 images of 128×128×64 are 2³¹ elements, which is no matter; 16 images of one block may not be."""
    config = dataclasses.replace(SAFE, by_position=by_position)

    def plan(batch: int, side: int) -> None:
        problem = Problem(batch, side, side, 64, 64, (3, 3), padding=(1, 1))
        kernels_layers.plan_pass("forward", problem, config, "ieee", Device("made up", Chip("cuda", 80), 108))

    plan(2048, 128)
    with pytest.raises(NotImplementedError, match="forward: the images of a block must have fewer than 2³¹ elements"):
        plan(1, 8192)
