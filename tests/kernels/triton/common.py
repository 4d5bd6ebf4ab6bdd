"""Layers whose sums are exact in every dtype, and runs of passes in which no stray read or write goes unseen.

All values are small multiples of 1/8, so that products and their sums have no rounding, in whatever order they are
added. What comes out must equal the rule on exact potentials bit for bit, at the firing borders too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from ttfs_kernels import Neuron
from ttfs_kernels.rule import fire, vanishing
from ttfs_kernels.triton_backend.configs import Config
from ttfs_kernels.triton_backend.formulation import Chip, Form, refused, triton_version
from ttfs_kernels.triton_backend.launch import Device, device_of, interpreting
from ttfs_kernels.triton_backend.problem import Problem

# The interpreter multiplies bfloat16 wrongly.
DTYPES = (torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu))
INTEGER = 255  # where nothing was written to integers, which have no NaN
FENCE = 64  # elements on either side of a tensor; keeps its alignment

# Sides of different lengths, so that no two are taken for each other.
BLOCKS = (Config(32, 16, 16, 4, 1, group=1), Config(16, 32, 16, 4, 2, group=2), Config(16, 16, 32, 4, 3))


def examples(count: int) -> settings:
    """As many examples on a GPU; a third of them in the interpreter, which takes about a second for each."""
    return settings(max_examples=-(-count // 3) if interpreting() else count)


@st.composite
def convolutions(draw: st.DrawFn) -> Problem:
    """Any geometry, small."""
    groups = draw(st.sampled_from([1, 1, 2, 5]))
    inputs, outputs = (groups * draw(st.sampled_from([1, 3, 16, 17])) for _ in range(2))
    kernel, stride, padding, dilation = (draw(st.tuples(*2 * [st.integers(low, 3)])) for low in (1, 1, 0, 1))
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    height, width = (draw(st.integers(size, size + 3)) for size in least)
    batch = draw(st.integers(0, 2))
    return Problem(batch, height, width, inputs, outputs, kernel, stride, padding, dilation, groups)


@st.composite
def small_maps(draw: st.DrawFn) -> Problem:
    """Maps of which the taps miss a large part, with batches smaller and larger than blocks."""
    channels, outputs = (draw(st.sampled_from([16, 20, 33])) for _ in range(2))
    kernel, padding = (draw(st.tuples(*2 * [st.integers(low, 3)])) for low in (1, 0))
    stride, dilation = (draw(st.tuples(*2 * [st.integers(1, 2)])) for _ in range(2))
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    height, width = (draw(st.integers(size, size + 1)) for size in least)
    batch = draw(st.sampled_from([1, 5, 16, 35]))
    return Problem(batch, height, width, channels, outputs, kernel, stride, padding, dilation)


widths = st.sampled_from([1, 3, 16, 17, 33, 65])
linears = st.builds(Problem, st.sampled_from([0, 1, 3, 17, 32, 65]), st.just(1), st.just(1), widths, widths)
problems = convolutions() | small_maps() | linears


class Layer(NamedTuple):
    """Operands of all passes, as rows in memory on the device: x [B, H, W, C], weight [N, R, S, C], h [B, P, Q, N]."""

    problem: Problem
    x: Tensor
    weight: Tensor
    bias: Tensor
    h: Tensor
    slope_h: Tensor
    skip: Tensor
    skip_weight: Tensor

    @property
    def delayed(self) -> tuple[Tensor, ...]:
        """Of a layer with a skip, delayed spikes and their weights."""
        return (self.skip, self.skip_weight) if self.problem.skip else ()


def exact_layer(problem: Problem, device: torch.device) -> Layer:
    """Random multiples of 1/8; of the inputs about 40 % are silent and 10 % saturated."""
    maps = (problem.batch, problem.height, problem.width, problem.in_channels)
    weights = (problem.out_channels, *problem.kernel, problem.group_inputs)
    outputs = (problem.batch, *problem.out_size, problem.out_channels)
    torch.manual_seed(0)

    def multiples(shape: tuple[int, ...], least: int, most: int, dtype: torch.dtype = problem.dtype) -> Tensor:
        return fenced((torch.randint(least, most + 1, shape) / 8).to(device, dtype))

    x, bias = multiples(maps, -6, 8).clamp_min_(0), multiples((problem.out_channels,), -4, 4, torch.float32)
    weight, h, slope_h = multiples(weights, -4, 4), multiples(outputs, -8, 8), multiples(outputs, -8, 8)
    skip, skip_weight = (
        multiples(outputs, -6, 8).clamp_min_(0),
        multiples((problem.out_channels,), -8, 8, torch.float32),
    )
    return Layer(problem, x, weight, bias, h, slope_h, skip, skip_weight)


def fenced(tensor: Tensor, new_empty: Callable[..., Tensor] = Tensor.new_empty) -> Tensor:
    """A contiguous copy with NaN before and behind it in memory: what is read there spoils the result."""
    memory = new_empty(tensor, tensor.numel() + 2 * FENCE, dtype=tensor.dtype).fill_(_unwritten(tensor))
    return memory[FENCE : FENCE + tensor.numel()].view(tensor.shape).copy_(tensor)


@contextmanager
def fenced_memory() -> Iterator[None]:
    """New tensors hold NaN until they are written to, and nothing may be written around them."""
    real_new_empty, fences = Tensor.new_empty, []

    def new_empty(self: Tensor, *size: Any, **options: Any) -> Tensor:
        tensor = real_new_empty(self, *size, **options)
        tensor = fenced(tensor.fill_(_unwritten(tensor)), real_new_empty)
        memory = tensor.as_strided((tensor.numel() + 2 * FENCE,), (1,), 0)
        fences.extend((memory[:FENCE], memory[-FENCE:]))
        return tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "new_empty", new_empty)
        patch.setattr(torch, "empty_like", lambda like, **options: new_empty(like, like.shape, **options))
        yield
    unwritten = all((fence.isnan() | (fence == INTEGER)).all() for fence in fences)
    assert unwritten, "something was written around a tensor"


def _unwritten(tensor: Tensor) -> float:
    return float("nan") if tensor.is_floating_point() else INTEGER


def run(pass_: Callable[[], Any], layer: Layer) -> Any:
    """What a pass returns, on the CPU, from fenced memory; its operands must not change."""
    operands = layer[1:]
    copies = [tensor.clone() for tensor in operands]
    with fenced_memory():
        result = pass_()
        if hasattr(result, "run"):
            result = result.run()
    assert all(torch.equal(ours, copy) for ours, copy in zip(operands, copies, strict=True))
    results = result if isinstance(result, tuple) else (result,)
    return tuple(None if tensor is None else tensor.cpu() for tensor in results)


def chip_for(device: torch.device, form: Form) -> Chip:
    """Of the GPU; in the interpreter one that takes every form. Skips forms that the GPU refuses."""
    if device.type != "cuda":
        return Chip("cuda", 80)
    chip = device_of(device).chip
    reason = refused(form, chip, triton_version())
    if reason is not None:
        pytest.skip(reason)
    return chip


def allowed_forms() -> list[Form]:
    """Forms that are built here: hypothesis must not draw one that is refused, for a skip ends the whole test."""
    if not torch.cuda.is_available():
        return list(Form)
    return [form for form in Form if refused(form, device_of(torch.device("cuda", 0)).chip, triton_version()) is None]


def device_for(device: torch.device, architecture: int, processors: int = 4) -> Device:
    """The GPU; in the interpreter a made-up one. Skips architectures that are not the GPU's."""
    if device.type != "cuda":
        return Device("made up", Chip("cuda", architecture), processors)
    ours = device_of(device)
    if ours.chip != Chip("cuda", architecture):
        pytest.skip(f"{ours.chip} is not sm_{architecture}")
    return ours


def expected_forward(layer: Layer, persistence: float, has_bias: bool) -> tuple[Tensor, Tensor]:
    """(y, gain) from exact potentials, rounded once; float16 gains end at the largest float16."""
    x, dtype = _maps(layer.x), layer.problem.dtype
    slope = _convolve(layer.problem, (x > 0).double(), layer).float()
    potential = _convolve(layer.problem, x, layer).float()
    if has_bias:
        potential += layer.bias.cpu()
    if layer.problem.skip:
        skip, weight = layer.skip.cpu().float(), layer.skip_weight.cpu()
        potential, slope = potential + weight * skip, slope + weight * (skip > 0)
    y, gain = fire(potential, persistence * slope)
    y = potential.clamp(0, 1) if persistence == 0 else y
    gain = gain.clamp_max(torch.finfo(dtype).max) if dtype == torch.float16 else gain
    return y.to(dtype), gain.to(dtype)


def expected_grad_x(layer: Layer, neuron: Neuron = Neuron()) -> Tensor:
    """In float64, rounded once; that of the mask too if the layer has a surrogate."""
    x, weight = _maps(layer.x).requires_grad_(), _maps(layer.weight)
    grad = _gradient(layer, x, weight, x, layer.h)
    if layer.problem.with_slope:
        grad = torch.where(x > 0, grad, 0.0)
    if layer.problem.surrogate:
        grad = grad + _gradient(layer, x, weight, x, layer.slope_h) * vanishing(x, neuron)
    return _rows(grad).to(layer.problem.dtype)


def expected_grad_w(layer: Layer) -> Tensor:
    x, weight = _maps(layer.x), _maps(layer.weight).requires_grad_()
    grad = _gradient(layer, x, weight, weight, layer.h)
    if layer.problem.with_slope:
        grad = grad + _gradient(layer, (x > 0).double(), weight, weight, layer.slope_h)
    return _rows(grad).to(layer.problem.dtype)


def _convolve(problem: Problem, x: Tensor, layer: Layer) -> Tensor:
    return _rows(F.conv2d(x, _maps(layer.weight), None, *problem.geometry))


def _gradient(layer: Layer, x: Tensor, weight: Tensor, wanted: Tensor, h: Tensor) -> Tensor:
    y = F.conv2d(x, weight, None, *layer.problem.geometry)
    return torch.autograd.grad(y, wanted, _maps(h))[0]


def _maps(rows: Tensor) -> Tensor:
    """[B, H, W, C] → [B, C, H, W] in float64 on the CPU, with strides of its own."""
    return rows.cpu().double().permute(0, 3, 1, 2).contiguous()


def _rows(maps: Tensor) -> Tensor:
    return maps.detach().permute(0, 2, 3, 1).contiguous()
