"""The passes of a layer with batch norm by our kernels: contraction, statistics and rule; their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ttfs_kernels.autograd import Kept
from ttfs_kernels.contraction import Geometry
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton_backend import layer, library, normalisation, passes
from ttfs_kernels.triton_backend.launch import Launch, device_of, precision_of
from ttfs_kernels.triton_backend.normalisation import MEAN, MOMENTS, STATISTICS, VARIANCE, Neurons
from ttfs_kernels.triton_backend.passes import ELEMENTS, TILE, Plan
from ttfs_kernels.triton_backend.problem import Problem


@dataclass(frozen=True)
class TritonNormalised:
    """Keeps input, weight, potentials, statistics and, with a pool, the winners for the backward pass."""

    geometry: Geometry | None
    neuron: Neuron
    epsilon: float
    group: ProcessGroup | None
    backend: str
    pool: int

    def forward(self, operands: tuple[Any, ...], with_derivatives: bool) -> tuple[tuple[Tensor, ...], Kept]:
        x, weight, gamma, beta, skip, skip_weight = operands
        neuron = self.neuron
        problem = Problem.of(x, weight, self.geometry, neuron, self.pool, skip is not None)
        potentials = _potentials(Problem.of(x, weight, self.geometry, neuron), x, weight, self.backend)
        delayed = None, None
        if skip is not None and skip_weight is not None:
            delayed = layer.rows_of(skip), skip_weight.contiguous()
        statistics = _statistics(problem, potentials, gamma, beta, neuron, self.epsilon, self.group)
        y, winner = fire(problem, Neurons(*potentials, statistics, *delayed), neuron).run()
        found = layer.shaped(y, x), statistics[MEAN.value], statistics[VARIANCE.value]
        return found, (x, weight, *potentials, statistics, *delayed, winner)

    def backward(self, grad: Tensor, kept: tuple[Any, ...], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        (x, weight, *others), neuron, rows = kept, self.neuron, layer.rows_of(grad)
        neurons = Neurons(*others)
        problem = Problem.of(x, weight, self.geometry, neuron, self.pool, neurons.skip is not None)
        sums, grad_skip = reduce(problem, neurons, rows, neuron).run()
        of_all = sums[:2]
        if self.group is not None:
            of_all = of_all.clone()
            torch.distributed.all_reduce(of_all, group=self.group)
        (pair,) = spread(problem, neurons, rows, of_all, neuron).run()
        needed = needs[0], needs[1]
        by_operands = layer.contract_gradients(problem.unpooled, pair, x, weight, neuron, self.backend, needed)
        grad_beta, grad_gamma, *grad_skip_weight = sums
        by_skip = (None, None) if grad_skip is None else (layer.shaped(grad_skip, grad), *grad_skip_weight)
        return *by_operands, grad_gamma, grad_beta, *by_skip


def _potentials(problem: Problem, x: Tensor, weight: Tensor, backend: str) -> tuple[Tensor, Tensor | None]:
    """(A, W) as rows, W without σ and None at σ = 0; `problem` has no pool and no skip, which come later."""
    config = layer.config_of("forward", problem, x.device, backend)
    operands = layer.rows_of(x), layer.rows_of(weight)
    if config is None:
        return library.potentials(problem, *operands)
    # Another σ and δ change nothing here.
    options = Neuron(float(problem.with_slope)), True, config, precision_of(problem), device_of(x.device).chip
    return passes.forward(problem, *operands, None, *options, fires=False).run()


def _statistics(
    problem: Problem,
    potentials: tuple[Tensor, Tensor | None],
    gamma: Tensor,
    beta: Tensor,
    neuron: Neuron,
    epsilon: float,
    group: ProcessGroup | None,
) -> Tensor:
    """[7, N] float32 of the batch; with a group of all its processes' batches, merged in the order of ranks."""
    parameters = gamma.contiguous(), beta.contiguous(), epsilon
    (statistics,) = statistics_of(problem, potentials, *parameters, neuron).run()
    if group is None:
        return statistics
    own = statistics[: MOMENTS.value]
    everyone = own.new_empty(torch.distributed.get_world_size(group), *own.shape)
    torch.distributed.all_gather(list(everyone), own, group=group)
    return _merged(everyone, *parameters).run()[0]


def statistics_of(
    problem: Problem,
    potentials: tuple[Tensor, Tensor | None],
    gamma: Tensor,
    beta: Tensor,
    epsilon: float,
    neuron: Neuron,
) -> Plan:
    """([7, N] float32,): statistics of V, and what follows from them."""
    A, channels = potentials[0], problem.out_channels
    grid, sizes = passes.summing_blocks(problem.rows, channels, TILE // A.element_size())
    parts = A.new_empty((grid[0], MOMENTS.value, channels), dtype=torch.float32)
    arguments = {
        "neurons": Neurons(*potentials),
        "parts_ptr": parts,
        "properties": neuron.numbers(),
        "WITH_SLOPE": problem.with_slope,
    }
    launches = [Launch(normalisation.moments, grid, sizes | arguments)] if problem.rows else []
    merged = _merged(parts, gamma, beta, epsilon)
    return Plan(launches + merged.launches, merged.outputs)


def _merged(parts: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Plan:
    """(statistics,) of moments [parts, 3, N]."""
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
    """(y, winner): activations and, with a pool, uint8 which neuron of its window each was."""
    shape = (problem.batch, *problem.pooled_size, problem.out_channels)
    y = neurons.A.new_empty(shape)
    winner = y.new_empty(shape, dtype=torch.uint8) if problem.pool > 1 else None
    windows = problem.batch * math.prod(problem.pooled_size)
    grid, blocks = passes.blocks_of_rows(windows, problem.out_channels)
    arguments = _arguments(problem, neurons._replace(winner=winner), neuron) | blocks
    arguments |= {"y_ptr": y, "windows": windows}
    return Plan([Launch(normalisation.fire_normalised, grid, arguments)] if windows else [], (y, winner))


def reduce(problem: Problem, neurons: Neurons, grad: Tensor, neuron: Neuron) -> Plan:
    """(sums, grad_skip): float32 gradients of β and γ, with a skip of its weights, [2 or 3, N]; that of delayed spikes.

    `grad` is of windows if there is a pool. Without a skip its gradient is None.
    """
    # A program holds more of each neuron than `local_gradient` does.
    grid, sizes = passes.summing_blocks(problem.rows, problem.out_channels, ELEMENTS)
    grad_skip = None if neurons.skip is None else torch.empty_like(neurons.skip)
    parts = grad.new_empty((grid[0], 2 if grad_skip is None else 3, problem.out_channels), dtype=torch.float32)
    arguments = _arguments(problem, neurons, neuron) | sizes
    arguments |= {"SURROGATE": neuron.has_surrogate, "grad_ptr": grad, "parts_ptr": parts, "grad_skip_ptr": grad_skip}
    sums = parts.new_empty(parts.shape[1:])
    launches = [Launch(normalisation.reduce_gradient, grid, arguments)] if problem.rows else []
    return Plan([*launches, passes.sum_parts(parts, sums)], (sums, grad_skip))


def spread(problem: Problem, neurons: Neurons, grad: Tensor, sums: Tensor, neuron: Neuron) -> Plan:
    """(pair,): what the contractions of the backward pass read, see `passes.halves`; `sums` [2, N] of all processes."""
    pair = grad.new_empty((2 if problem.with_slope else 1, *neurons.A.shape))
    h, slope_h = passes.halves(pair)
    grid, blocks = passes.blocks_of_rows(problem.rows, problem.out_channels)
    arguments = _arguments(problem, neurons, neuron) | blocks
    arguments |= {"SURROGATE": neuron.has_surrogate, "M": problem.rows}
    arguments |= {"grad_ptr": grad, "sums_ptr": sums, "h_ptr": h, "slope_h_ptr": slope_h}
    return Plan([Launch(normalisation.spread_gradient, grid, arguments)] if problem.rows else [], (pair,))


def _arguments(problem: Problem, neurons: Neurons, neuron: Neuron) -> dict[str, Any]:
    return {
        "neurons": neurons,
        "N": problem.out_channels,
        "P": problem.out_size[0],
        "Q": problem.out_size[1],
        "properties": neuron.numbers(),
        "HAS_SKIP": neurons.skip is not None,
        "WITH_SLOPE": problem.with_slope,
        "POOL": problem.pool,
    }
