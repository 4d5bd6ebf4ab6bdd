"""Who takes part in `kernels.py`: our operators, and four ways to compute a layer without them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels import Neuron, dft_conv2d, dft_linear
from ttfs_kernels.reference import compose_conv2d, compose_linear
from ttfs_kernels.rule import fire
from ttfs_kernels.triton_backend.problem import Problem

OURS, AUTO, TORCH = "ours, triton", "ours, auto", "ours, torch"
COMPOSITION, STACKED, ANN = "composition", "stacked", "ANN"
COMPILED = "{}, compiled"
CLIP = 11.0  # bound on derivatives, the operators' default; no derivative of the benchmark's layers comes near it

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, weight, bias) → activations; differentiable


@dataclass(frozen=True)
class Contender:
    """A way to compute a layer.

    Attributes:
        name: in tables.
        forward: of x, weight and bias in PyTorch's layouts, channels last.
        spiking: whether it computes a spiking layer; if not, the same layer as an ANN.
        masked: whether silent inputs get no gradient, as in ours.
    """

    name: str
    forward: Forward
    spiking: bool = True
    masked: bool = True


def contenders(problem: Problem, device: torch.device, sigma: float, compiled: bool) -> list[Contender]:
    """Ours first. For σ = 0 the composition is the ANN's, and there is nothing to stack."""
    # Without a GPU ours is the torch backend, which is the stacked call.
    own = {OURS: "triton", AUTO: "auto"} if device.type == "cuda" else {TORCH: "torch"}
    found = [Contender(name, ours(problem, sigma, backend), masked=sigma > 0) for name, backend in own.items()]
    ann = Contender(ANN, clamped(problem), spiking=False, masked=False)
    if sigma > 0:
        composition = Contender(COMPOSITION, composed(problem, sigma), masked=False)
        found.append(composition)
        if device.type == "cuda":
            found.append(Contender(STACKED, stacked_library(problem, sigma)))
        if compiled:
            found.append(compile_(composition, device))
            found.append(compile_(Contender(STACKED, stacked(problem, sigma)), device))
    elif compiled:
        found.append(compile_(ann, device))
    return [*found, ann]


def compile_(contender: Contender, device: torch.device) -> Contender:
    """Under torch.compile, with the templates of matrix products and convolutions timed on a GPU."""
    mode = "max-autotune-no-cudagraphs" if device.type == "cuda" else "default"
    forward = torch.compile(contender.forward, mode=mode, dynamic=False, fullgraph=True)
    return Contender(COMPILED.format(contender.name), forward, contender.spiking, contender.masked)


def ours(problem: Problem, sigma: float, backend: str) -> Forward:
    options: dict[str, Any] = {"neuron": Neuron(sigma, CLIP), "backend": backend}
    if is_linear(problem):
        return lambda x, weight, bias: dft_linear(x, weight, bias, **options)
    return lambda x, weight, bias: dft_conv2d(x, weight, bias, **geometry(problem), **options)


def composed(problem: Problem, sigma: float) -> Forward:
    """Two contractions and `torch.where`, as a user would write it."""
    if is_linear(problem):
        return lambda x, weight, bias: compose_linear(x, weight, bias.to(x.dtype), psp_persistence=sigma)
    options: dict[str, Any] = geometry(problem) | {"psp_persistence": sigma}
    return lambda x, weight, bias: compose_conv2d(x, weight, bias.to(x.dtype), **options)


def clamped(problem: Problem) -> Forward:
    """The layer of an ANN: a contraction and a clamped ReLU."""
    return lambda x, weight, bias: F.hardtanh(contract(problem, x, weight, bias.to(x.dtype)), 0.0, 1.0)


def stacked_library(problem: Problem, sigma: float) -> Forward:
    """One library call over [x; σ·mask] and our fused element-wise kernels, in all passes."""
    shape = (problem.batch, problem.height, problem.width, problem.in_channels)
    weights = (problem.out_channels, *problem.kernel, problem.group_inputs)

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if is_linear(problem):
            y = StackedLibrary.apply(x.view(shape), weight.view(weights), bias, problem, sigma)
            return y.view(problem.batch, problem.out_channels)
        rows = x.permute(0, 2, 3, 1).contiguous(), weight.permute(0, 2, 3, 1).contiguous()
        return StackedLibrary.apply(*rows, bias, problem, sigma).permute(0, 3, 1, 2)

    return forward


class StackedLibrary(torch.autograd.Function):
    """`triton_backend.library` in all passes; tensors are rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, problem: Problem, sigma: float) -> Tensor:
        from ttfs_kernels.triton_backend import library

        y, gain = library.forward(problem, x, weight, bias, Neuron(sigma), True)
        ctx.save_for_backward(x, weight, y, gain)
        ctx.problem, ctx.sigma = problem, sigma
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from ttfs_kernels.triton_backend import library, passes

        x, weight, y, gain = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        plan = passes.local_gradient(
            ctx.problem, grads[0].contiguous(), y, gain, Neuron(ctx.sigma, CLIP), needs_weight, needs_bias
        )
        pair, grad_bias = plan.run()
        grad_x = library.grad_x(ctx.problem, pair, x, weight) if needs_x else None
        grad_weight = None
        if needs_weight:
            grad_weight = library.grad_w(ctx.problem, pair, x, weight).view(weight.shape)
        return grad_x, grad_weight, grad_bias, None, None


def stacked(problem: Problem, sigma: float) -> Forward:
    """The same in plain PyTorch, for a compiler to fuse."""
    return lambda x, weight, bias: Stacked.apply(x, weight, bias, problem, sigma)


class Stacked(torch.autograd.Function):
    """One contraction over [x; σ·mask] a pass; the backward pass wastes none on the mask's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, problem: Problem, sigma: float) -> Tensor:
        operand = torch.cat((x, sigma * (x > 0).to(x.dtype)))
        A, W = contract(problem, operand, weight, None).float().chunk(2)
        y, gain = fire(A + (bias if is_linear(problem) else bias[:, None, None]), W)
        if y.dtype != x.dtype:  # PyTorch 2.11 compiles an output cast to its own dtype to one without a gradient
            y, gain = y.to(x.dtype), gain.to(x.dtype)
        ctx.save_for_backward(x, weight, y, gain)
        ctx.problem, ctx.sigma = problem, sigma
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y, gain = ctx.saved_tensors
        grad, gain = grads[0].float(), gain.float()
        h = (grad * gain.clamp_max(CLIP)).to(x.dtype)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = torch.where(x > 0, gradient_of_x(ctx.problem, h, x, weight), 0.0)
        if needs_weight:
            slope_h = (ctx.sigma * (grad * ((1 - y.float()) * gain).clamp_max(CLIP))).to(x.dtype)
            pairs = torch.cat((h, slope_h)), torch.cat((x, (x > 0).to(x.dtype)))
            grad_weight = gradient_of_weight(ctx.problem, *pairs, weight)
        if needs_bias:
            grad_bias = h.float().sum((0,) if is_linear(ctx.problem) else (0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None


def contract(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias) if is_linear(problem) else F.conv2d(x, weight, bias, **geometry(problem))


def gradient_of_x(problem: Problem, h: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    if is_linear(problem):
        return h @ weight
    return convolution_backward(problem, h, x, weight, [True, False, False])[0]


def gradient_of_weight(problem: Problem, h: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    if is_linear(problem):
        return h.t() @ x
    return convolution_backward(problem, h, x, weight, [False, True, False])[1]


def convolution_backward(problem: Problem, h: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> Sequence:
    stride, padding, dilation, groups = map(as_list, problem.geometry)
    return torch.ops.aten.convolution_backward(
        h, x, weight, None, stride, padding, dilation, False, [0, 0], groups, wanted
    )


def as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def geometry(problem: Problem) -> dict[str, Any]:
    return {
        "stride": problem.stride,
        "padding": problem.padding,
        "dilation": problem.dilation,
        "groups": problem.groups,
    }


def is_linear(problem: Problem) -> bool:
    """Whether a layer is fully connected: a 1×1 convolution is so only on 1×1 maps."""
    return problem.is_matrix_product and problem.height == problem.width == 1
