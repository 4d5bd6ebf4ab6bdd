"""Layers whose sums are exact in every dtype, their passes, and the expected results from float64.

All values are small multiples of 1/8, so that products and their sums have no rounding, in whatever order they are
added. Results must equal the rule on exact potentials bit for bit, at the firing borders too.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import settings
from torch import Tensor

from tests.kernels import common
from tests.kernels.common import Kind, linears
from tests.kernels.memory import fenced, fenced_memory
from ttfs_kernels import Neuron
from ttfs_kernels.rule import fire, vanishing
from ttfs_kernels.triton.blocks import Config
from ttfs_kernels.triton.common import INTERPRETING
from ttfs_kernels.triton.contractions import contract, contract_and_fire, gradient_of_weight
from ttfs_kernels.triton.grad_input import gradient_of_input
from ttfs_kernels.triton.problem import Problem, problem_of

DTYPES = [torch.float32, torch.float16]
if torch.cuda.is_available():
    DTYPES.append(torch.bfloat16)  # which the interpreter multiplies wrongly

# Sides of different lengths, so that no two are taken for each other.
BLOCKS = (Config(32, 16, 16, 4, 1, group=1), Config(16, 32, 16, 4, 2, group=2), Config(16, 16, 32, 4, 3))


def examples(count: int) -> settings:
    """This many examples on a GPU, a third in the interpreter, which takes about a second for each."""
    return settings(max_examples=-(-count // 3) if INTERPRETING else count)


def problem(kind: Kind) -> Problem:
    """A layer of these shapes, with the paper's neurons."""
    return problem_of(*kind, torch.float32, True, False, False)


convolutions = common.convolutions().map(problem)
# Of small maps the taps miss a large part; their batches are smaller and larger than blocks.
small_maps = common.convolutions((1, 5, 16, 35), (16, 20, 33), (1,), 1).map(problem)
problems = convolutions | small_maps | linears().map(problem)


class Layer(NamedTuple):
    """Operands of all passes, as rows in memory on the device: x [B, H, W, C], weight [N, R, S, C].

    `pair` [2, B, P, Q, N] holds h and slope_h, gradients of both potentials.
    """

    problem: Problem
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    pair: Tensor


def exact_layer(problem: Problem, device: torch.device, shift: int = 0) -> Layer:
    """Random multiples of 1/8, between fences; of the inputs about 40 % are silent and 10 % saturated."""
    maps = (problem.batch, problem.height, problem.width, problem.in_channels)
    weights = (problem.out_channels, *problem.kernel, problem.group_inputs)
    pairs = (2, problem.batch, *problem.out_size, problem.out_channels)
    torch.manual_seed(0)

    def multiples(shape: tuple[int, ...], least: int, most: int, dtype: torch.dtype = problem.dtype) -> Tensor:
        return fenced((torch.randint(least, most + 1, shape) / 8).to(device, dtype), shift=shift)

    x, weight, pair = multiples(maps, -6, 8).clamp_min_(0), multiples(weights, -4, 4), multiples(pairs, -8, 8)
    return Layer(problem, x, weight, multiples((problem.out_channels,), -4, 4, torch.float32), pair)


def compute(
    which: str, layer: Layer, config: Config, neuron: Neuron = Neuron(), dtype: torch.dtype = torch.float32
) -> tuple[Tensor | None, ...]:
    """A contraction's results: "forward", whose potentials have the dtype, "inference", "grad_x" or "grad_w"."""
    problem, x, weight, bias, pair = layer
    if which == "forward":
        return contract(problem, x, weight, config, dtype)[:2]
    if which == "inference":
        return (contract_and_fire(problem, x, weight, config, bias, neuron),)
    pair = pair if problem.contractions(which) == 2 else pair[:1]
    if which == "grad_x":
        return (gradient_of_input(problem, pair, x, weight, config, neuron),)
    return (gradient_of_weight(problem, pair, x, config, neuron),)


def run(pass_: Callable[[], tuple[Tensor | None, ...]], layer: Layer) -> tuple[Tensor | None, ...]:
    """A pass's results, computed in fenced memory and moved to the CPU; asserts that its operands do not change."""
    operands = [tensor for tensor in layer[1:] if tensor is not None]
    copies = [tensor.clone() for tensor in operands]
    with fenced_memory():
        results = pass_()
    assert all(map(torch.equal, operands, copies))
    return tuple(None if tensor is None else tensor.cpu() for tensor in results)


def expected(which: str, layer: Layer, neuron: Neuron = Neuron()) -> tuple[Tensor, ...]:
    """A contraction's expected results: sums in float64, rounded once; (A, W) in float32."""
    problem, dtype = layer.problem, layer.problem.dtype
    x, weight, (h, slope_h) = _maps(layer.x).requires_grad_(), _maps(layer.weight).requires_grad_(), layer.pair
    if which in ("forward", "inference"):
        A, W = (_rows(F.conv2d(inputs, weight, None, *problem.geometry)).float() for inputs in (x, (x > 0).double()))
        if which == "forward":
            return A, W
        A = A if layer.bias is None else A + layer.bias.cpu().float()  # kernels compute in float32
        return ((fire(A, neuron.psp_persistence * W)[0] if neuron.has_slope else A.clamp(0, 1)).to(dtype),)
    if problem.shared:
        slope_h = neuron.psp_persistence * h
    if which == "grad_x":
        grad = _gradient(layer, x, weight, x, h)
        if problem.with_slope:
            grad = torch.where(x > 0, grad, 0.0)
        if problem.surrogate:
            grad = grad + _gradient(layer, x, weight, x, slope_h) * vanishing(x, neuron)
    else:
        grad = _gradient(layer, x, weight, weight, h)
        if problem.with_slope:
            grad = grad + _gradient(layer, (x > 0).double(), weight, weight, slope_h)
    return (_rows(grad).to(dtype),)


def _gradient(layer: Layer, x: Tensor, weight: Tensor, wanted: Tensor, h: Tensor) -> Tensor:
    y = F.conv2d(x, weight, None, *layer.problem.geometry)
    return torch.autograd.grad(y, wanted, _maps(h))[0]


def _maps(rows: Tensor) -> Tensor:
    """[B, H, W, C] → [B, C, H, W] in float64 on the CPU, with strides of its own."""
    return rows.cpu().double().permute(0, 3, 1, 2).contiguous()


def _rows(maps: Tensor) -> Tensor:
    return maps.detach().permute(0, 2, 3, 1).contiguous()
