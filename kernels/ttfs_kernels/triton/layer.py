"""The passes of a layer, with and without batch norm, by our kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ttfs_kernels.checks import Geometry
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton import common
from ttfs_kernels.triton.blocks import Config, blocks_of
from ttfs_kernels.triton.contractions import contract, contract_and_fire, gradient_of_weight
from ttfs_kernels.triton.grad_input import gradient_of_input
from ttfs_kernels.triton.neurons import MEAN, VARIANCE, Neurons, differentiate, fire_neurons, statistics_of
from ttfs_kernels.triton.problem import Problem, problem_of


@dataclass(frozen=True)
class TritonLayer:
    """A layer by our kernels. Keeps its operands and potentials for the backward pass.

    Attributes:
        geometry: geometry of a convolution; None for a fully connected layer.
        neuron: how it fires and how it is differentiated.
        epsilon: added to the variance by batch norm; None without.
        group: processes that share the statistics of batch norm.
    """

    geometry: Geometry | None
    neuron: Neuron
    epsilon: float | None = None
    group: ProcessGroup | None = None

    def forward(self, operands: tuple[Any, ...], with_derivatives: bool) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        run: Any = _forward_operator if torch.compiler.is_compiling() else partial(_forward, group=self.group)
        y, *kept = run(*operands, *self._plain(), self.epsilon, with_derivatives)
        x, weight, _, bias, *skip = operands
        if self.epsilon is None:
            return (y,), (x, weight, bias, *skip, *kept)
        return (y, kept[-1][MEAN.value], kept[-1][VARIANCE.value]), (x, weight, None, *skip, *kept)

    def backward(self, grad: Tensor, kept: tuple[Any, ...], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        normalised = self.epsilon is not None
        run: Any = _backward_operator if torch.compiler.is_compiling() else partial(_backward, group=self.group)
        results = iter(run(grad, *kept[:5], list(kept[5:]), *self._plain(), normalised, list(needs)))
        grad_x, grad_weight = (next(results) if needed else None for needed in needs[:2])
        sums, grad_skip = next(results, None), next(results, None)
        if sums is None:
            return grad_x, grad_weight, None, None, None, None
        by_skip = (None, None) if grad_skip is None else (grad_skip, sums[-1])
        return grad_x, grad_weight, sums[1] if normalised else None, sums[0] if needs[3] else None, *by_skip

    def _plain(self) -> tuple[Any, Any]:
        """Geometry and neuron; in an operator, numbers that its schema takes."""
        if not torch.compiler.is_compiling():
            return self.geometry, self.neuron
        numbers = [] if self.geometry is None else [n for pair in self.geometry[:3] for n in pair]
        return numbers + ([] if self.geometry is None else [self.geometry.groups]), self.neuron.pack()


def _forward(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    bias: Tensor | None,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    geometry: Any,
    neuron: Any,
    epsilon: float | None,
    with_derivatives: bool,
    group: ProcessGroup | None = None,
) -> list[Tensor]:
    """Activations, followed by the potentials A and W and by statistics, if there are any, for the backward pass."""
    neuron, problem = _described(x, weight, geometry, neuron)
    config, bias, skip, skip_weight = blocks_for("forward", problem, x.device), *map(_rows, (bias, skip, skip_weight))
    if not with_derivatives and skip is None and gamma is None:
        return [_shaped(contract_and_fire(problem, _rows(x), _rows(weight), config, bias, neuron), x)]
    how = (torch.float32, None) if gamma is None else (x.dtype, neuron)
    A, W, parts = contract(problem, _rows(x), _rows(weight), config, *how)
    statistics = None
    if parts is not None and gamma is not None and bias is not None and epsilon is not None:
        statistics, bias = statistics_of(parts, gamma.contiguous(), bias, epsilon, group), None
    kept = [tensor for tensor in (A, W, statistics) if tensor is not None]
    y = fire_neurons(Neurons(A, W, statistics, bias, skip, skip_weight), neuron, x.dtype)
    return [_shaped(y, x), *kept]


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    potentials: Sequence[Tensor],
    geometry: Any,
    neuron: Any,
    normalised: bool,
    needs: Sequence[bool],
    group: ProcessGroup | None = None,
) -> list[Tensor]:
    """Gradients of x and weight if needed, the sums of `differentiate` if others need them, and the skip's gradient."""
    neuron, problem = _described(x, weight, geometry, neuron)
    A, W = potentials[0], potentials[1] if problem.with_slope else None
    late, rows = (_rows(skip), _rows(skip_weight)), _rows(grad)
    neurons = Neurons(A, W, potentials[-1] if normalised else None, _rows(bias), *late)
    gradients = 1 + (problem.with_slope and not problem.shared and (needs[1] or problem.surrogate))
    sums = 1 + normalised + (skip is not None) if normalised or skip is not None else int(needs[3])
    pair: Any
    pair, by_channel, grad_skip = differentiate(neurons, neuron, rows, 0 if normalised else gradients, sums=sums)
    if normalised:  # the gradients need the sums
        assert by_channel is not None
        totals = by_channel[:2]
        if group is not None:
            totals = totals.clone()
            torch.distributed.all_reduce(totals, group=group)
        pair, *_ = differentiate(neurons, neuron, rows, gradients, totals)
    rows, grad_x, grad_weight = _rows(x), None, None
    if needs[0]:
        config = blocks_for("grad_x", problem, x.device)
        grad_x = _shaped(gradient_of_input(problem, pair, rows, _rows(weight), config, neuron), x)
    if needs[1]:
        config = blocks_for("grad_w", problem, x.device)
        grad_weight = _shaped(gradient_of_weight(problem, pair, rows, config, neuron), weight)
    grad_skip = None if grad_skip is None else _shaped(grad_skip, grad)
    return [result for result in (grad_x, grad_weight, by_channel, grad_skip) if result is not None]


# What `_forward` and `_backward` take and give, as operators of PyTorch's compiler; it shares no statistics in a group.
_forward_operator = torch.library.custom_op(
    "ttfs::forward",
    _forward,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? gamma, Tensor? bias, Tensor? skip, Tensor? skip_weight, "
    "SymInt[] geometry, float[] neuron, float? epsilon, bool with_derivatives) -> Tensor[]",
)
_backward_operator = torch.library.custom_op(
    "ttfs::backward",
    _backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor? skip, Tensor? skip_weight, "
    "Tensor[] potentials, SymInt[] geometry, float[] neuron, bool normalised, bool[] needs) -> Tensor[]",
)
# The same functions serve as fakes, since launches do nothing on fake tensors: see `common.launch`.
_forward_operator.register_fake(_forward)
_backward_operator.register_fake(_backward)


def _described(x: Tensor, weight: Tensor, geometry: Any, neuron: Any) -> tuple[Neuron, Problem]:
    """The neuron and the layer that the values of `_plain` describe."""
    if not isinstance(neuron, Neuron):
        neuron = Neuron.unpack(tuple(neuron))
        pairs = tuple(geometry)
        geometry = Geometry(pairs[:2], pairs[2:4], pairs[4:6], pairs[6]) if pairs else None
    shapes = tuple(map(int, x.shape)), tuple(map(int, weight.shape))  # a compiler's may be symbols
    shared_gradient = neuron.has_slope and neuron.split_gradient == 0
    return neuron, problem_of(*shapes, geometry, x.dtype, neuron.has_slope, neuron.has_surrogate, shared_gradient)


def blocks_for(which: str, problem: Problem, device: torch.device) -> Config:
    """`blocks_of` on a device, with the precision that PyTorch is set to."""
    return blocks_of(which, problem, common.chip_of(device), precision_of(problem, device))


def precision_of(problem: Problem, device: torch.device) -> str:
    """Precision of a layer's products, "ieee" or "tf32", by PyTorch's switch for matrix products or convolutions."""
    if problem.dtype != torch.float32:
        return "ieee"
    vendor, architecture, _ = common.chip_of(device)
    if vendor == "hip" and architecture != "gfx942":  # no other AMD GPU has tf32
        return "ieee"
    cudnn: Any = torch.backends.cudnn
    switch = torch.backends.cuda.matmul if problem.is_matrix_product else cudnn.conv
    return "tf32" if switch.fp32_precision == "tf32" else "ieee"


def _rows(tensor: Any) -> Any:
    """Maps [B, C, H, W] → [B, H, W, C], a view of channels-last maps; others as they are. Contiguous, else copied."""
    if tensor is None:
        return None
    return (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).contiguous()


def _shaped(result: Tensor, like: Tensor) -> Tensor:
    """A result [B, H, W, C] in the dimensions of an operand: maps [B, C, H, W], or rows [B, C]."""
    return result.permute(0, 3, 1, 2) if like.dim() == 4 else result.view(result.shape[0], result.shape[-1])
