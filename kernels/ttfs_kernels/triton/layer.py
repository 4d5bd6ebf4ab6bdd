"""The passes of a layer, with and without batch norm, by our kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ttfs_kernels.autograd import Kept
from ttfs_kernels.contraction import Geometry
from ttfs_kernels.fused import persistence
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton.blocks import blocks_for
from ttfs_kernels.triton.forward import contract, contract_and_fire
from ttfs_kernels.triton.grad_input import gradient_of_input
from ttfs_kernels.triton.grad_weight import gradient_of_weight
from ttfs_kernels.triton.neurons import Neurons, differentiate, fire_neurons
from ttfs_kernels.triton.normalisation import MEAN, VARIANCE, statistics_of
from ttfs_kernels.triton.problem import Problem


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

    def forward(self, operands: tuple[Any, ...], with_derivatives: bool) -> tuple[tuple[Tensor, ...], Kept]:
        if self.epsilon is None:
            run: Any = _forward_operator if torch.compiler.is_compiling() else _forward
            y, *potentials = run(*operands, *self._plain(), with_derivatives)
            return (y,), (*operands, *potentials)
        x, weight, gamma, beta, *late = operands
        problem = Problem.of(x, weight, self.geometry, self.neuron)
        A, W = _contract(problem, x, weight, x.dtype)
        parameters = gamma.contiguous(), beta.contiguous(), self.epsilon, self.group
        statistics = statistics_of(A, W, None if W is None else persistence(self.neuron, x), *parameters)
        neurons = Neurons(A, W, statistics, None, *map(_rows, late))
        y = fire_neurons(neurons, self.neuron, x.dtype)
        return (_shaped(y, x), statistics[MEAN.value], statistics[VARIANCE.value]), (x, weight, *neurons)

    def backward(self, grad: Tensor, kept: tuple[Any, ...], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        if self.epsilon is None:
            run: Any = _backward_operator if torch.compiler.is_compiling() else _backward
            found = iter(run(grad, *kept[:5], list(kept[5:]), *self._plain(), list(needs)))
            grad_x, grad_weight = (next(found) if needed else None for needed in needs[:2])
            sums, grad_skip = next(found, None), next(found, None)
            by_skip = (None, None) if grad_skip is None or sums is None else (grad_skip, sums[1])
            return grad_x, grad_weight, sums[0] if needs[2] and sums is not None else None, *by_skip
        (x, weight, *others), rows = kept, _rows(grad)
        neurons, problem = Neurons(*others), Problem.of(x, weight, self.geometry, self.neuron)
        _, sums, grad_skip = differentiate(neurons, self.neuron, rows, 0, sums=2 if neurons.skip is None else 3)
        assert sums is not None
        totals = sums[:2]
        if self.group is not None:
            totals = totals.clone()
            torch.distributed.all_reduce(totals, group=self.group)
        pair, *_ = differentiate(neurons, self.neuron, rows, 1 + _differ(problem), totals)
        by_operands = _contract_gradients(problem, pair, x, weight, self.neuron, needs)
        by_skip = (None, None) if grad_skip is None else (_shaped(grad_skip, grad), sums[2])
        return *by_operands, sums[1], sums[0], *by_skip

    def _plain(self) -> tuple[Any, Any]:
        """Geometry and neuron; in an operator, numbers that its schema takes."""
        if not torch.compiler.is_compiling():
            return self.geometry, self.neuron
        numbers = [] if self.geometry is None else [n for pair in self.geometry[:3] for n in pair]
        return numbers + ([] if self.geometry is None else [self.geometry.groups]), self.neuron.pack()


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    geometry: Sequence[int],
    neuron: Sequence[float],
    with_derivatives: bool,
) -> list[Tensor]:
    """Activations, followed by the potentials A and W, if there are any, for the backward pass."""
    properties, problem = _described(x, weight, geometry, neuron)
    bias = _rows(bias)
    if not with_derivatives and skip is None:
        config = blocks_for("forward", problem, x.device)
        return [_shaped(contract_and_fire(problem, _rows(x), _rows(weight), config, bias, properties), x)]
    A, W = _contract(problem, x, weight, torch.float32)
    y = fire_neurons(Neurons(A, W, None, bias, _rows(skip), _rows(skip_weight)), properties, x.dtype)
    return [_shaped(y, x), A] if W is None else [_shaped(y, x), A, W]


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    potentials: Sequence[Tensor],
    geometry: Sequence[int],
    neuron: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x and weight if needed, the sums of `differentiate` if bias or skip need them, and the skip's."""
    properties, problem = _described(x, weight, geometry, neuron)
    A, W = potentials[0], potentials[1] if problem.with_slope else None
    neurons = Neurons(A, W, None, _rows(bias), _rows(skip), _rows(skip_weight))
    gradients = 1 + (_differ(problem) and (needs[1] or problem.surrogate))
    sums = 2 if skip is not None else int(needs[2])
    pair, by_channel, grad_skip = differentiate(neurons, properties, _rows(grad), gradients, sums=sums)
    by_skip = None if grad_skip is None else _shaped(grad_skip, grad)
    found = *_contract_gradients(problem, pair, x, weight, properties, needs), by_channel, by_skip
    return [gradient for gradient in found if gradient is not None]


# The same functions serve as the operators' fakes, since launches do nothing on fake tensors: see `blocks.launch`.
_forward_operator = torch.library.custom_op("ttfs::forward", _forward, mutates_args=())
_backward_operator = torch.library.custom_op("ttfs::backward", _backward, mutates_args=())
_forward_operator.register_fake(_forward)
_backward_operator.register_fake(_backward)


def _described(x: Tensor, weight: Tensor, geometry: Any, neuron: Any) -> tuple[Neuron, Problem]:
    """The neuron and the layer that the values of `_plain` describe."""
    if not isinstance(neuron, Neuron):
        neuron = Neuron.unpack(tuple(neuron))
        pairs = tuple(geometry)
        geometry = Geometry(pairs[:2], pairs[2:4], pairs[4:6], pairs[6]) if pairs else None
    return neuron, Problem.of(x, weight, geometry, neuron)


def _differ(problem: Problem) -> bool:
    """Whether both potentials have gradients, which differ."""
    return problem.with_slope and not problem.shared


def _contract(problem: Problem, x: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return contract(problem, _rows(x), _rows(weight), blocks_for("forward", problem, x.device), dtype)


def _contract_gradients(
    problem: Problem, pair: Any, x: Tensor, weight: Tensor, neuron: Neuron, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and weight, None if not needed, from those of the potentials."""
    rows, grad_x, grad_weight = _rows(x), None, None
    if needs[0]:
        config = blocks_for("grad_x", problem, x.device)
        grad_x = _shaped(gradient_of_input(problem, pair, rows, _rows(weight), config, neuron), x)
    if needs[1]:
        config = blocks_for("grad_w", problem, x.device)
        grad_weight = _shaped(gradient_of_weight(problem, pair, rows, config, neuron), weight)
    return grad_x, grad_weight


def _rows(tensor: Any) -> Any:
    """Maps [B, C, H, W] → [B, H, W, C], a view of channels-last maps; others as they are. Contiguous, else copied."""
    if tensor is None:
        return None
    return (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).contiguous()


def _shaped(result: Tensor, like: Tensor) -> Tensor:
    """A result [B, H, W, C] in the dimensions of an operand: maps [B, C, H, W], or rows [B, C]."""
    return result.permute(0, 3, 1, 2) if like.dim() == 4 else result.view(result.shape[0], result.shape[-1])
