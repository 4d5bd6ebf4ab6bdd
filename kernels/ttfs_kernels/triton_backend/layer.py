"""The passes of a layer, with and without batch norm, by our kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ttfs_kernels.autograd import Kept, Operands
from ttfs_kernels.contraction import Geometry
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton_backend import normalisation, passes
from ttfs_kernels.triton_backend.launch import Device, Launch, device_of, precision_of
from ttfs_kernels.triton_backend.normalisation import MEAN, MOMENTS, STATISTICS, VARIANCE, Neurons
from ttfs_kernels.triton_backend.passes import ELEMENTS, TILE, Plan
from ttfs_kernels.triton_backend.planning import Config, default_config
from ttfs_kernels.triton_backend.problem import Problem


@dataclass(frozen=True)
class TritonLayer:
    """A layer by our kernels. Keeps for the backward pass: x, weight, y, the gain if σ > 0.

    Attributes:
        geometry: geometry of a convolution; None for a fully connected layer.
        neuron: how it fires and how it is differentiated.
    """

    geometry: Geometry | None
    neuron: Neuron

    def forward(self, operands: Operands, with_derivatives: bool) -> tuple[tuple[Tensor], Kept]:
        x, weight, _, skip, skip_weight = operands
        run: Any = _forward_operator if torch.compiler.is_compiling() else _forward
        kept = run(*operands, *self._plain(), with_derivatives)
        return (kept[0],), (x, weight, skip, skip_weight, *kept)

    def backward(self, grad: Tensor, kept: Kept, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        run: Any = _backward_operator if torch.compiler.is_compiling() else _backward
        found = iter(run(grad, *kept[:4], list(kept[4:]), *self._plain(), list(needs)))
        return tuple(next(found) if needed else None for needed in needs)

    def _plain(self) -> tuple[list[int], Any]:
        """Geometry and neuron in types that an operator's schema takes."""
        numbers = [] if self.geometry is None else [n for pair in self.geometry[:3] for n in pair]
        numbers += [] if self.geometry is None else [self.geometry.groups]
        # A `PlacedNeuron` keeps its tensor, except in an operator.
        neuron: Any = self.neuron.pack() if torch.compiler.is_compiling() else self.neuron
        return numbers, neuron


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
    """Activations, followed by the gain, if there is one, for the backward pass."""
    properties = neuron if isinstance(neuron, Neuron) else Neuron.unpack(tuple(neuron))
    problem = Problem.of(x, weight, _geometry(geometry), properties, skip is not None)
    device, precision, config = _blocks("forward", problem, x)
    operands = rows_of(x), rows_of(weight), None if bias is None else bias.contiguous()
    delayed = () if skip is None or skip_weight is None else (rows_of(skip), skip_weight.contiguous())
    options = properties, with_derivatives, config, precision, device.chip
    spikes = passes.forward(problem, *operands, *options, *delayed).run()
    return [shaped(result, x) for result in spikes if result is not None]


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    kept: Sequence[Tensor],
    geometry: Sequence[int],
    neuron: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x, weight, bias, skip and skip_weight, only the needed ones; `kept` is the result of `_forward`."""
    needs_x, needs_weight, needs_bias, *_ = needs
    properties = neuron if isinstance(neuron, Neuron) else Neuron.unpack(tuple(neuron))
    problem = Problem.of(x, weight, _geometry(geometry), properties, skip is not None)
    y, *gain = map(rows_of, kept)
    delayed = () if skip is None or skip_weight is None else (rows_of(skip), skip_weight.contiguous())
    pair_is_read = not problem.shared and (needs_weight or properties.has_surrogate)
    spikes = rows_of(grad), y, gain[0] if gain else None
    options = properties, pair_is_read, needs_bias
    pair, *by_neuron = passes.local_gradient(problem, *spikes, *options, *delayed).run()
    if delayed:
        by_neuron[1] = shaped(by_neuron[1], grad)
    found = contract_gradients(problem, pair, x, weight, properties, (needs_x, needs_weight))
    gradients = zip((*found, *by_neuron), needs, strict=False)
    return [gradient for gradient, needed in gradients if needed and gradient is not None]


def contract_gradients(
    problem: Problem,
    pair: Tensor,
    x: Tensor,
    weight: Tensor,
    neuron: Neuron,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and weight, None if not needed; `pair` holds both potentials' gradients, see `passes.halves`."""
    h, slope_h = passes.halves(pair)
    operands = rows_of(x), rows_of(weight)
    grad_x = grad_weight = None
    if needs[0]:
        device, precision, config = _blocks("grad_x", problem, x)
        options = config, precision, slope_h, neuron, device.processors
        (grad_x,) = passes.grad_x(problem, h, *operands, *options).run()
        grad_x = shaped(grad_x, x)
    if needs[1]:
        device, precision, config = _blocks("grad_w", problem, x)
        (grad_weight,) = passes.grad_w(problem, h, slope_h, operands[0], config, precision, device, neuron).run()
        grad_weight = shaped(grad_weight, weight)
    return grad_x, grad_weight


# The same functions serve as the operators' fakes, since launches do nothing on fake tensors: see `Launch.run`.
_forward_operator = torch.library.custom_op("ttfs::forward", _forward, mutates_args=())
_backward_operator = torch.library.custom_op("ttfs::backward", _backward, mutates_args=())
_forward_operator.register_fake(_forward)
_backward_operator.register_fake(_backward)


def _blocks(which: str, problem: Problem, x: Tensor) -> tuple[Device, str, Config]:
    """(device, precision of products, blocks) of a pass over x."""
    device, precision = device_of(x.device), precision_of(problem, x.device)
    return device, precision, default_config(which, problem, device.chip, precision, device.processors)


def _geometry(numbers: Sequence[int]) -> Geometry | None:
    return Geometry(numbers[:2], numbers[2:4], numbers[4:6], numbers[6]) if numbers else None


def rows_of(tensor: Tensor) -> Tensor:
    """Maps [B, C, H, W] → [B, H, W, C], a view of channels-last maps; matrices as they are. Contiguous, else copied."""
    return (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).contiguous()


def shaped(result: Tensor, like: Tensor) -> Tensor:
    """A result [B, H, W, C] in the dimensions of an operand: maps [B, C, H, W], or rows [B, C]."""
    return result.permute(0, 3, 1, 2) if like.dim() == 4 else result.view(result.shape[0], result.shape[-1])


@dataclass(frozen=True)
class TritonNormalised:
    """A layer with batch norm by our kernels. Keeps x, weight, potentials and statistics for the backward."""

    geometry: Geometry | None
    neuron: Neuron
    epsilon: float
    group: ProcessGroup | None

    def forward(self, operands: tuple[Any, ...], with_derivatives: bool) -> tuple[tuple[Tensor, ...], Kept]:
        x, weight, gamma, beta, skip, skip_weight = operands
        neuron = self.neuron
        problem = Problem.of(x, weight, self.geometry, neuron, skip is not None)
        potentials = _potentials(Problem.of(x, weight, self.geometry, neuron), x, weight)
        statistics = self._statistics(problem, potentials, gamma, beta)
        delayed = () if skip is None or skip_weight is None else (rows_of(skip), skip_weight.contiguous())
        neurons = Neurons(*potentials, statistics, *delayed)
        (y,) = fire(problem, neurons, neuron).run()
        found = shaped(y, x), statistics[MEAN.value], statistics[VARIANCE.value]
        return found, (x, weight, *neurons)

    def _statistics(
        self, problem: Problem, potentials: tuple[Tensor, Tensor | None], gamma: Tensor, beta: Tensor
    ) -> Tensor:
        """Statistics of the batch, [7, N] float32; with a group, of its processes' batches, merged in rank order."""
        parameters = gamma.contiguous(), beta.contiguous(), self.epsilon
        (statistics,) = statistics_of(problem, potentials, *parameters, self.neuron).run()
        if self.group is None:
            return statistics
        own = statistics[: MOMENTS.value]
        everyone = own.new_empty(torch.distributed.get_world_size(self.group), *own.shape)
        torch.distributed.all_gather(list(everyone), own, group=self.group)
        return _merged(everyone, *parameters).run()[0]

    def backward(self, grad: Tensor, kept: tuple[Any, ...], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        (x, weight, *others), neuron, rows = kept, self.neuron, rows_of(grad)
        neurons = Neurons(*others)
        problem = Problem.of(x, weight, self.geometry, neuron, neurons.skip is not None)
        sums, grad_skip = reduce(problem, neurons, rows, neuron).run()
        of_all = sums[:2]
        if self.group is not None:
            of_all = of_all.clone()
            torch.distributed.all_reduce(of_all, group=self.group)
        (pair,) = spread(problem, neurons, rows, of_all, neuron).run()
        by_operands = contract_gradients(problem, pair, x, weight, neuron, (needs[0], needs[1]))
        grad_beta, grad_gamma, *grad_skip_weight = sums
        by_skip = (None, None) if grad_skip is None else (shaped(grad_skip, grad), *grad_skip_weight)
        return *by_operands, grad_gamma, grad_beta, *by_skip


def _potentials(problem: Problem, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """(A, W) as rows, W without σ and None at σ = 0; `problem` has no skip, which comes later."""
    device, precision, config = _blocks("forward", problem, x)
    # Without the rule, the values of σ and δ do not matter.
    options = Neuron(float(problem.with_slope)), True, config, precision, device.chip
    return passes.forward(problem, rows_of(x), rows_of(weight), None, *options, fires=False).run()


def statistics_of(
    problem: Problem,
    potentials: tuple[Tensor, Tensor | None],
    gamma: Tensor,
    beta: Tensor,
    epsilon: float,
    neuron: Neuron,
) -> Plan:
    """(statistics,): [7, N] float32, statistics of V, one row per constant of `normalisation`."""
    A, channels = potentials[0], problem.out_channels
    grid, sizes = passes.summing_blocks(problem.rows, channels, TILE // A.element_size())
    parts = A.new_empty((grid[0], MOMENTS.value, channels), dtype=torch.float32)
    arguments = {
        "neurons": Neurons(*potentials),
        "parts_ptr": parts,
        "properties": passes.numbers(neuron, A),
        "WITH_SLOPE": problem.with_slope,
    }
    launches = [Launch(normalisation.moments, grid, sizes | arguments)] if problem.rows else []
    merged = _merged(parts, gamma, beta, epsilon)
    return Plan(launches + merged.launches, merged.outputs)


def _merged(parts: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Plan:
    """(statistics,): [7, N] float32, merged from the moments of the batch's parts [parts, 3, N]."""
    channels = parts.shape[2]
    statistics = parts.new_empty((STATISTICS, channels))
    arguments = {
        "parts_ptr": parts,
        "gamma_ptr": gamma,
        "beta_ptr": beta,
        "statistics_ptr": statistics,
        "parts": len(parts),
        "N": channels,
        "epsilon": epsilon,
        "BLOCK_M": 64,
        "BLOCK_N": 16,
    }
    return Plan([Launch(normalisation.merge, (math.ceil(channels / 16),), arguments)], (statistics,))


def fire(problem: Problem, neurons: Neurons, neuron: Neuron) -> Plan:
    """(y,): the activations."""
    y = torch.empty_like(neurons.A)
    grid, blocks = passes.blocks_of_rows(problem.rows, problem.out_channels)
    arguments = _arguments(problem, neurons, neuron) | blocks | {"y_ptr": y, "M": problem.rows}
    return Plan([Launch(normalisation.fire_normalised, grid, arguments)] if problem.rows else [], (y,))


def reduce(problem: Problem, neurons: Neurons, grad: Tensor, neuron: Neuron) -> Plan:
    """(sums, grad_skip): float32 gradients of β, γ and, with a skip, its weights, [2 or 3, N]; gradient of the skip.

    Without a skip, `grad_skip` is None.
    """
    # A program holds more values per neuron than in `local_gradient`.
    grid, sizes = passes.summing_blocks(problem.rows, problem.out_channels, ELEMENTS)
    grad_skip = None if neurons.skip is None else torch.empty_like(neurons.skip)
    parts = grad.new_empty((grid[0], 2 if grad_skip is None else 3, problem.out_channels), dtype=torch.float32)
    arguments = _arguments(problem, neurons, neuron) | sizes
    arguments |= {"SURROGATE": neuron.has_surrogate, "grad_ptr": grad, "parts_ptr": parts, "grad_skip_ptr": grad_skip}
    sums = parts.new_empty(parts.shape[1:])
    launches = [Launch(normalisation.reduce_gradient, grid, arguments)] if problem.rows else []
    return Plan([*launches, passes.sum_parts(parts, sums)], (sums, grad_skip))


def spread(problem: Problem, neurons: Neurons, grad: Tensor, sums: Tensor, neuron: Neuron) -> Plan:
    """(pair,): gradients of both potentials, see `passes.halves`; `sums` [2, N] are dβ and dγ over all processes."""
    pair = grad.new_empty((2 if problem.with_slope and not problem.shared else 1, *neurons.A.shape))
    h, slope_h = passes.halves(pair)
    grid, blocks = passes.blocks_of_rows(problem.rows, problem.out_channels)
    arguments = _arguments(problem, neurons, neuron) | blocks
    arguments |= {"SURROGATE": neuron.has_surrogate, "PAIR": slope_h is not None, "M": problem.rows}
    arguments |= {"grad_ptr": grad, "sums_ptr": sums, "h_ptr": h, "slope_h_ptr": slope_h}
    return Plan([Launch(normalisation.spread_gradient, grid, arguments)] if problem.rows else [], (pair,))


def _arguments(problem: Problem, neurons: Neurons, neuron: Neuron) -> dict[str, Any]:
    return {
        "neurons": neurons,
        "N": problem.out_channels,
        "properties": passes.numbers(neuron, neurons.A),
        "HAS_SKIP": neurons.skip is not None,
        "WITH_SLOPE": problem.with_slope,
    }
