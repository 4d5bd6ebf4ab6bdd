"""Layers whose sums are exact in every dtype, their passes, and the expected results from float64.

All values are small multiples of 1/8, so that products and their sums have no rounding, in whatever order they are
added. Results must equal the rule on exact potentials bit for bit, at the firing borders too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import settings
from torch import Tensor

from tests.kernels import common
from tests.kernels.common import Kind, linears
from tests.kernels.memory import fenced, fenced_memory
from ttfs_kernels import Neuron
from ttfs_kernels.rule import fire, vanishing
from ttfs_kernels.triton_backend import passes
from ttfs_kernels.triton_backend.formulation import Chip
from ttfs_kernels.triton_backend.launch import INTERPRETING, Device, device_of
from ttfs_kernels.triton_backend.passes import Plan
from ttfs_kernels.triton_backend.planning import Config
from ttfs_kernels.triton_backend.problem import Problem

DTYPES = [torch.float32, torch.float16]
if torch.cuda.is_available():
    DTYPES.append(torch.bfloat16)  # which the interpreter multiplies wrongly

# Sides of different lengths, so that no two are taken for each other.
BLOCKS = (Config(32, 16, 16, 4, 1, group=1), Config(16, 32, 16, 4, 2, group=2), Config(16, 16, 32, 4, 3))


def examples(count: int) -> settings:
    """This many examples on a GPU, a third in the interpreter, which takes about a second for each."""
    return settings(max_examples=-(-count // 3) if INTERPRETING else count)


def problem_of(kind: Kind) -> Problem:
    """A layer of these shapes."""
    x, weight = (torch.empty(shape, device="meta") for shape in kind[:2])
    return Problem.of(x, weight, kind.geometry, Neuron())


convolutions = common.convolutions().map(problem_of)
# Of small maps the taps miss a large part; their batches are smaller and larger than blocks.
small_maps = common.convolutions((1, 5, 16, 35), (16, 20, 33), (1,), 1).map(problem_of)
problems = convolutions | small_maps | linears().map(problem_of)


class Layer(NamedTuple):
    """Operands of all passes, as rows in memory on the device: x [B, H, W, C], weight [N, R, S, C], h [B, P, Q, N]."""

    problem: Problem
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    h: Tensor
    slope_h: Tensor
    skip: Tensor
    skip_weight: Tensor

    @property
    def delayed(self) -> tuple[Tensor, ...]:
        """Delayed spikes and their weights; empty without a skip."""
        return (self.skip, self.skip_weight) if self.problem.skip else ()


def exact_layer(problem: Problem, device: torch.device, shift: int = 0) -> Layer:
    """Random multiples of 1/8, between fences; of the inputs about 40 % are silent and 10 % saturated."""
    maps = (problem.batch, problem.height, problem.width, problem.in_channels)
    weights = (problem.out_channels, *problem.kernel, problem.group_inputs)
    outputs, channels = (problem.batch, *problem.out_size, problem.out_channels), (problem.out_channels,)
    torch.manual_seed(0)

    def multiples(shape: tuple[int, ...], least: int, most: int, dtype: torch.dtype = problem.dtype) -> Tensor:
        return fenced((torch.randint(least, most + 1, shape) / 8).to(device, dtype), shift=shift)

    x, skip = (multiples(shape, -6, 8).clamp_min_(0) for shape in (maps, outputs))
    weight, h, slope_h = multiples(weights, -4, 4), multiples(outputs, -8, 8), multiples(outputs, -8, 8)
    bias, skip_weight = (multiples(channels, -most, most, torch.float32) for most in (4, 8))
    return Layer(problem, x, weight, bias, h, slope_h, skip, skip_weight)


def plan(
    which: str, layer: Layer, config: Config, device: Device, neuron: Neuron = Neuron(), derivatives: bool = True
) -> Plan:
    """A contraction of the layer's operands: "forward", "grad_x" or "grad_w"."""
    problem, x, weight, bias, h, slope_h, *_ = layer
    if which == "forward":
        options = neuron, derivatives, config, "ieee", device.chip
        return passes.forward(problem, x, weight, bias, *options, *layer.delayed)
    if which == "grad_x":
        by_mask = slope_h if problem.contractions(which) == 2 else None
        return passes.grad_x(problem, h, x, weight, config, "ieee", by_mask, neuron, device.processors)
    pair = slope_h if problem.contractions(which) == 2 else None
    return passes.grad_w(problem, h, pair, x, config, "ieee", device, neuron)


def run(pass_: Callable[[], Any], layer: Layer) -> tuple[Tensor | None, ...]:
    """A pass's results, computed in fenced memory and moved to the CPU; asserts that its operands do not change."""
    operands = [tensor for tensor in layer[1:] if tensor is not None]
    copies = [tensor.clone() for tensor in operands]
    with fenced_memory():
        result = pass_()
        if hasattr(result, "run"):
            result = result.run()
    assert all(map(torch.equal, operands, copies))
    results = result if isinstance(result, tuple) else (result,)
    return tuple(None if tensor is None else tensor.cpu() for tensor in results)


def device_for(device: torch.device, architecture: int = 80, processors: int = 4) -> Device:
    """The GPU; in the interpreter a made-up one."""
    return device_of(device) if device.type == "cuda" else Device("made up", Chip("cuda", architecture), processors)


def expected(which: str, layer: Layer, neuron: Neuron = Neuron()) -> tuple[Tensor, ...]:
    """A contraction's expected results: sums in float64, rounded once."""
    if which == "forward":
        return expected_forward(layer, neuron.psp_persistence)
    problem, dtype = layer.problem, layer.problem.dtype
    if problem.shared:
        layer = layer._replace(slope_h=neuron.psp_persistence * layer.h)
    x, weight = (_maps(rows).requires_grad_() for rows in (layer.x, layer.weight))
    if which == "grad_x":
        grad = _gradient(layer, x, weight, x, layer.h)
        if problem.with_slope:
            grad = torch.where(x > 0, grad, 0.0)
        if problem.surrogate:
            grad = grad + _gradient(layer, x, weight, x, layer.slope_h) * vanishing(x, neuron)
    else:
        grad = _gradient(layer, x, weight, weight, layer.h)
        if problem.with_slope:
            grad = grad + _gradient(layer, (x > 0).double(), weight, weight, layer.slope_h)
    return (_rows(grad).to(dtype),)


def expected_forward(layer: Layer, persistence: float) -> tuple[Tensor, ...]:
    """(y, gain); float16 gains end at the largest float16."""
    x, dtype = _maps(layer.x), layer.problem.dtype
    slope = _convolve(layer.problem, (x > 0).double(), layer).float()
    potential = _convolve(layer.problem, x, layer).float()
    if layer.bias is not None:
        potential += layer.bias.cpu()
    if layer.problem.skip:
        skip, weight = layer.skip.cpu().float(), layer.skip_weight.cpu()
        potential, slope = potential + weight * skip, slope + weight * (skip > 0)
    y, gain = fire(potential, persistence * slope)
    y = potential.clamp(0, 1) if persistence == 0 else y
    gain = gain.clamp_max(torch.finfo(dtype).max) if dtype == torch.float16 else gain
    return y.to(dtype), gain.to(dtype)


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
