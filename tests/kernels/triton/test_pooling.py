"""A convolution that passes on the earliest spikes equals the convolution, then `max_pool2d`: values and gradients."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.triton.common import (
    BLOCKS,
    CONV2D,
    allowed_forms,
    chip_for,
    convolutions,
    exact_layer,
    expected_forward,
    run,
    serve_by,
)
from ttfs_kernels import Neuron, dft_conv2d
from ttfs_kernels.triton_backend import choice, passes
from ttfs_kernels.triton_backend.choice import Choice, Entry, choose
from ttfs_kernels.triton_backend.configs import default_config
from ttfs_kernels.triton_backend.launch import device_of
from ttfs_kernels.triton_backend.problem import Problem

EACH_WAY = pytest.mark.parametrize("fuse_pool", [False, True])
ODD = Problem(2, 5, 7, 17, 6, (3, 3), padding=(1, 1), pool=2)  # the last row and column are in no window


def windows(neurons: Tensor, problem: Problem) -> Tensor:
    """[B, P, Q, N] as [B, P / 2, Q / 2, N, 4]."""
    rows, columns = problem.pooled_size
    kept = neurons[:, : 2 * rows, : 2 * columns].unflatten(2, (columns, 2)).unflatten(1, (rows, 2))
    return kept.movedim(2, 3).flatten(3, 4).movedim(3, 4)


@settings(max_examples=15)
@given(
    problem=convolutions(),
    form=st.sampled_from(allowed_forms()),
    blocks=st.sampled_from(BLOCKS),
    persistence=st.sampled_from([1.0, 0.3, 0.0]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_epilogue_passes_on_the_earliest_spikes(device, problem, form, blocks, persistence, dtype):
    problem = dataclasses.replace(problem, dtype=dtype, with_slope=persistence > 0, pool=2)
    assume(min(problem.out_size) >= 2)
    layer = exact_layer(problem, device)
    config, neuron = dataclasses.replace(blocks, form=form, by_position=True), Neuron(persistence)
    operands = layer.x, layer.weight, layer.bias
    chip = chip_for(device, form)
    fused = run(lambda: passes.forward(problem, *operands, neuron, True, config, "ieee", chip), layer)
    y, gain = expected_forward(layer, persistence, has_bias=True)
    # The first of equals is the one that max_pool2d differentiates.
    ordered, places = windows(y, problem).sort(dim=-1, descending=True, stable=True)
    first = places[..., 0]
    assert torch.equal(fused[0], ordered[..., 0])
    assert torch.equal(fused[2].long(), first)
    if persistence:
        assert torch.equal(fused[1], windows(gain, problem).gather(-1, first[..., None])[..., 0])
    kept = (y.to(device), gain.to(device) if persistence else None)
    apart = run(lambda: passes.pool(problem, *kept, True), layer)
    for ours, theirs in zip(fused, apart, strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("persistence", [0.3, 0.0])
@pytest.mark.parametrize(("provider", "fuse_pool"), [("triton", True), ("triton", False), ("library", None)])
@pytest.mark.parametrize("name", ["few_channels", "groups", "gaps_many_channels", "stride_divides_dilation", "odd"])
def test_equals_the_composition(device, monkeypatch, name, persistence, provider, fuse_pool):
    problem = ODD if name == "odd" else CONV2D[name]
    check_composition(monkeypatch, exact_operands(problem, device), problem, Neuron(persistence), provider, fuse_pool)


@EACH_WAY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_equals_the_composition_with_a_surrogate(device, monkeypatch, kernel, dtype, fuse_pool):
    problem = dataclasses.replace(ODD, kernel=(kernel, kernel), dtype=dtype, batch=1)
    neuron = Neuron(0.5, surrogate_width=0.5)
    check_composition(monkeypatch, exact_operands(problem, device), problem, neuron, "triton", fuse_pool)


def exact_operands(problem: Problem, device: torch.device) -> list[Tensor]:
    layer = exact_layer(problem, device)
    return [layer.x.permute(0, 3, 1, 2), layer.weight.permute(0, 3, 1, 2), layer.bias]


def check_composition(
    monkeypatch, operands: list[Tensor], problem: Problem, neuron: Neuron, provider: str, fuse_pool: bool | None
) -> None:
    """Bit for bit, whoever computes the convolution."""
    serve_by(monkeypatch, provider)
    stride, padding, dilation, groups = problem.geometry
    options: dict = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "neuron": neuron}

    def results(pooled: bool) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_() for t in operands]
        if pooled:
            y = dft_conv2d(*leaves, **options, pool=2, fuse_pool=fuse_pool)
        else:
            y = F.max_pool2d(dft_conv2d(*leaves, **options), 2)
        grad = (torch.arange(y.numel(), device=y.device) % 17 / 8 - 1).view(y.shape).to(y.dtype)
        return [y, *torch.autograd.grad(y, leaves, grad)]

    with torch.no_grad():
        silent = dft_conv2d(*operands, **options, pool=2, fuse_pool=fuse_pool)
    ours = results(pooled=True)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    for found, expected in zip((silent, *ours), (ours[0], *results(pooled=False)), strict=True):
        assert torch.equal(found, expected)


@EACH_WAY
def test_nan_wins_as_in_max_pool2d(device, fuse_pool):
    x = torch.rand(1, 1, 4, 6, device=device).requires_grad_()
    weight, bias = torch.ones(1, 1, 1, 1, device=device), torch.zeros(1, device=device, requires_grad=True)
    with torch.no_grad():
        x[0, 0, 0, 1] = x[0, 0, 2, 4] = x[0, 0, 3, 5] = math.nan
    y = dft_conv2d(x, weight, bias, pool=2, fuse_pool=fuse_pool, backend="triton")
    assert torch.equal(y.isnan(), torch.tensor([[[[True, False, False], [False, False, True]]]], device=device))
    grad_x, grad_bias = torch.autograd.grad(y.sum(), (x, bias))
    assert grad_x[0, 0].isnan().nonzero().tolist() == [[0, 1], [3, 5]]
    assert grad_bias.isnan().all()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiles_in_one_graph(device, backend):
    x = torch.rand(2, 3, 5, 4, device=device).requires_grad_()
    weight = torch.randn(4, 3, 3, 3, device=device).requires_grad_()

    def layer(x: Tensor, weight: Tensor) -> Tensor:
        return dft_conv2d(x, weight, padding=1, pool=2, backend=backend)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    ours, theirs = compiled(x, weight), layer(x, weight)
    assert torch.equal(ours, theirs)
    for mine, other in zip(*(torch.autograd.grad(y.sum(), (x, weight)) for y in (ours, theirs)), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_the_epilogue_pools_where_that_was_measured_to_be_faster(device, monkeypatch, backend):
    here = device_of(device)

    def chosen(*entries: Entry) -> Choice:
        choice.forget()
        monkeypatch.setattr(choice, "read_table", lambda _: list(entries))
        return choose("forward", ODD, here, "ieee", backend)

    config = default_config("forward", ODD, here.chip, "ieee")
    assert chosen() == Choice(None, "default")
    assert chosen(Entry("forward", ODD.unpooled, "ieee", config, 1.0, 2.0)) == Choice(None, "default")
    assert chosen(Entry("forward", ODD, "ieee", config, 1.0, 2.0)) == Choice(config, "measured")
    assert chosen(Entry("forward", ODD, "ieee", config, 2.0, 1.0)) == Choice(None, "measured")


def test_backward_passes_are_those_without_a_pool():
    assert ODD.of_pass("grad_x") == ODD.of_pass("grad_w") == ODD.unpooled
    assert ODD.of_pass("forward") == ODD
    plain = {key: value for key, value in ODD.to_dict().items() if key != "pool"}
    assert Problem.from_dict(plain) == ODD.unpooled  # tables of earlier versions
    assert ODD.bytes("forward") < ODD.unpooled.bytes("forward")


def test_no_images_need_no_launch(device):
    x, weight = torch.rand(0, 17, 5, 7, device=device), torch.rand(6, 17, 3, 3, device=device).requires_grad_()
    for fuse_pool in (False, True):
        y = dft_conv2d(x, weight, pool=2, fuse_pool=fuse_pool, backend="triton")
        assert y.shape == (0, 6, 1, 2)
        assert not torch.autograd.grad(y.sum(), weight)[0].any()
