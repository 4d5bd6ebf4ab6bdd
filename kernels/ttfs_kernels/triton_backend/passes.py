"""Each pass as launches of our kernels: outputs are allocated and launches planned; no library is called.

Tensors are rows in memory: x [B, H, W, C] or [M, K], weight [N, R, S, C] or [N, K], y, gain, grad and h
[B, P, Q, N] or [M, N], all contiguous. They may be on the meta device, to plan without memory.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttfs_kernels.fused import persistence
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton_backend import elementwise, planning
from ttfs_kernels.triton_backend.conv_forward import conv2d_forward
from ttfs_kernels.triton_backend.conv_grad import conv2d_grad_w, conv2d_grad_x, sum_tap_splits
from ttfs_kernels.triton_backend.formulation import Chip, inputs_first
from ttfs_kernels.triton_backend.launch import Device, Launch
from ttfs_kernels.triton_backend.planning import (
    SMALLEST_BLOCK,
    WIDE,
    Config,
    largest_offset,
    row_blocks,
    skips,
    tap_steps,
    weight_blocks,
)
from ttfs_kernels.triton_backend.problem import Problem

ELEMENTS = 1024  # elements in a block of the element-wise kernels
TILE = 4096  # 16-bit elements that a program of the local gradient holds at once; 32-bit elements in a sum over splits
ROW_PROGRAMS = 256  # most programs along the rows: two per processor of a large GPU, and one tile can sum their results
FULL_GRID = 128  # programs below which a sum over splits takes smaller blocks: about the processors of a large GPU
LARGEST_UNIT = 16  # largest divisor of channels that kernels are told; no load takes more elements at once


class Plan(NamedTuple):
    """Launches of a pass, in order, and the tensors that they fill."""

    launches: list[Launch]
    outputs: tuple[Tensor | None, ...]

    def run(self) -> tuple[Any, ...]:
        for launch in self.launches:
            launch.run()
        return self.outputs


def forward(
    problem: Problem,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    neuron: Neuron,
    with_derivatives: bool,
    config: Config,
    precision: str,
    chip: Chip,
    skip: Tensor | None = None,
    skip_weight: Tensor | None = None,
    *,
    fires: bool = True,
) -> Plan:
    """(y, gain): activations, and ∂a/∂A if `with_derivatives` (None at σ = 0, where it is not needed).

    `skip` holds delayed spikes in the shape of y, one per neuron, `skip_weight` [N] the weights of their synapses.
    Without `fires` (A, W): potentials, and slopes without the factor σ (None at σ = 0).
    """
    y, gain = _new_spikes(problem, x, with_derivatives)
    problem = problem.flat
    _check_offsets("forward", problem, config)
    arguments = {
        "x_ptr": x,
        "w_ptr": weight,
        "bias_ptr": bias,
        "y_ptr": y,
        "gain_ptr": gain,
        "skip_ptr": skip,
        "skip_weight_ptr": skip_weight,
        "properties": numbers(neuron, x) if fires else neuron.numbers(None),
        "HAS_BIAS": bias is not None,
        "HAS_SKIP": skip is not None,
        "FIRES": fires,
        "WITH_SLOPE": problem.with_slope,
        "WITH_GAIN": gain is not None,
        "SURROGATE": neuron.has_surrogate and gain is not None,
        "FEW_CHANNELS": problem.joint_steps,
        "BY_POSITION": skips(problem, config),
        "EVEN": problem.group_inputs % config.block_k == 0,
        "PRECISION": precision,
        "INPUTS_FIRST": inputs_first(chip),
        "GROUP": config.group,
        **_sizes(problem),
    }
    blocks = row_blocks(problem, math.prod(problem.out_size), config)
    blocks *= math.ceil(problem.group_outputs / config.block_n)
    launch = Launch.blocks(conv2d_forward, (blocks, problem.groups), arguments, config)
    return Plan([launch] if problem.rows else [], (y, gain))


def local_gradient(
    problem: Problem,
    grad: Tensor,
    y: Tensor,
    gain: Tensor | None,
    neuron: Neuron,
    with_slope_h: bool,
    with_bias: bool,
    skip: Tensor | None = None,
    skip_weight: Tensor | None = None,
) -> Plan:
    """(pair, grad_bias): gradients of both potentials, which the contractions read, see `halves`; float32 sum of h.

    With delayed spikes, also their gradient and, in float32, the gradient of their weights.
    """
    rows, channels = problem.rows, problem.out_channels
    # With a skip a program holds more of each neuron: half a tile, or registers spill with a surrogate.
    grid, sizes = summing_blocks(rows, channels, (2 if skip is None else 1) * TILE // grad.element_size())
    pair = grad.new_empty(2 if with_slope_h and problem.with_slope else 1, *grad.shape)
    h, slope_h = halves(pair)
    sums, skip_sums = (
        grad.new_empty((grid[0], channels), dtype=torch.float32) if wanted else None
        for wanted in (with_bias, skip is not None)
    )
    grad_skip = None if skip is None else torch.empty_like(h)
    arguments = {
        **sizes,
        "grad_ptr": grad,
        "y_ptr": y,
        "gain_ptr": gain,
        "h_ptr": h,
        "slope_h_ptr": slope_h,
        "bias_sum_ptr": sums,
        "skip_ptr": skip,
        "skip_weight_ptr": skip_weight,
        "grad_skip_ptr": grad_skip,
        "skip_weight_sum_ptr": skip_sums,
        "properties": numbers(neuron, grad),
        "WITH_SLOPE": problem.with_slope,
        "WITH_BIAS": with_bias,
        "WITH_SLOPE_H": slope_h is not None,
        "HAS_SKIP": skip is not None,
        "SURROGATE": neuron.has_surrogate and skip is not None,
    }
    launches = [Launch(elementwise.local_gradient, grid, arguments)] if rows else []
    totals = [None if parts is None else parts.new_empty(channels) for parts in (sums, skip_sums)]
    added = zip((sums, skip_sums), totals, strict=True)
    launches += [sum_parts(parts, total) for parts, total in added if parts is not None and total is not None]
    return Plan(launches, (pair, totals[0]) if skip is None else (pair, totals[0], grad_skip, totals[1]))


def numbers(neuron: Neuron, like: Tensor) -> tuple[Any, ...]:
    """The neuron's properties as an argument of kernels, which load σ; at σ = 0 they do not read it."""
    return neuron.numbers(persistence(neuron, like) if neuron.has_slope else None)


def halves(pair: Tensor) -> tuple[Tensor, Tensor | None]:
    """(h, slope_h): gradients of A and of Σ w·[x > 0]; slope_h is None if `pair` holds h alone."""
    return pair[0], pair[1] if len(pair) == 2 else None


def grad_x(
    problem: Problem,
    h: Tensor,
    x: Tensor,
    weight: Tensor,
    config: Config,
    precision: str,
    slope_h: Tensor | None,
    neuron: Neuron,
    processors: int,
) -> Plan:
    """(grad_x,): the gradient of the activations, zero at silent inputs if σ > 0.

    With a surrogate, and `slope_h` or a shared gradient, the gradient of the mask is added.
    """
    out = x.new_empty(x.shape, dtype=h.dtype)
    if x.numel() == 0:
        return Plan([], (out,))
    problem = problem.flat
    _check_offsets("grad_x", problem, config)
    positions = math.prod(
        math.ceil(size / step) for size, step in zip((problem.height, problem.width), problem.stride, strict=True)
    )
    blocks = row_blocks(problem, positions, config) * math.ceil(problem.group_inputs / config.block_n)
    splits, steps_per_split = 1, math.ceil(problem.group_outputs / config.block_k)
    if problem.is_matrix_product:
        splits, steps_per_split = planning.split([steps_per_split], blocks, processors, config.splits, config.block_k)
    surrogate = neuron.has_surrogate and (slope_h is not None or problem.shared)
    shared = surrogate and problem.shared
    parts = out
    if splits > 1:
        parts = out.new_empty((splits, 2 if surrogate and not shared else 1, out.numel()), dtype=torch.float32)
    tap_steps = [step // math.gcd(step, gap) for step, gap in zip(problem.stride, problem.dilation, strict=True)]
    properties = numbers(neuron, x) if shared else neuron.numbers(None)
    at_inputs = {"x_ptr": x, "properties": properties, "MASKED": problem.with_slope}
    at_inputs |= {"SURROGATE": surrogate, "SHARED": shared}
    arguments = {
        "h_ptr": h,
        "slope_h_ptr": slope_h,
        "w_ptr": weight,
        "grad_x_ptr": parts,
        "steps_per_split": steps_per_split,
        "STEP_H": tap_steps[0],
        "STEP_W": tap_steps[1],
        "SPLIT": splits > 1,
        "BY_POSITION": skips(problem, config),
        "EVEN": problem.group_outputs % config.block_k == 0,
        "PRECISION": precision,
        "GROUP": config.group,
        **at_inputs,
        **_sizes(problem),
    }
    grid = blocks, splits if splits > 1 else math.prod(problem.stride), problem.groups
    launches = [Launch.blocks(conv2d_grad_x, grid, arguments, config)]
    if splits > 1:
        total = {"parts_ptr": parts, "grad_x_ptr": out, "splits": splits, "size": out.numel(), "BLOCK": ELEMENTS}
        grid = (math.ceil(out.numel() / ELEMENTS),)
        launches.append(Launch(elementwise.sum_grad_x, grid, total | at_inputs))
    return Plan(launches, (out,))


def grad_w(
    problem: Problem,
    h: Tensor,
    slope_h: Tensor | None,
    x: Tensor,
    config: Config,
    precision: str,
    device: Device,
    neuron: Neuron = Neuron(),
) -> Plan:
    """(grad_weight,): [N, K] or [N, R, S, C], summed over splits in a fixed order."""
    synapses = (problem.depth,) if x.dim() == 2 else (*problem.kernel, problem.group_inputs)
    shape = (problem.out_channels, *synapses)
    out = h.new_empty(shape)
    if problem.rows == 0:
        return Plan([], (out.zero_(),))
    problem = problem.flat
    _check_offsets("grad_w", problem, config)
    steps, blocks = tap_steps(problem, config), weight_blocks(problem, config)
    slots = device.processors * planning.resident("grad_w", problem, config, device.chip)
    splits, steps_per_split = planning.split(steps, blocks, slots, config.splits, config.block_k)
    parts = out if splits == 1 else h.new_empty((splits, *shape), dtype=torch.float32)
    arguments = {
        "h_ptr": h,
        "slope_h_ptr": slope_h,
        "x_ptr": x,
        "out_ptr": parts,
        "steps_per_split": steps_per_split,
        "properties": numbers(neuron, x) if problem.shared else neuron.numbers(None),
        "PAIR": slope_h is not None,
        "SHARED": problem.shared,
        "INPUTS_FIRST": inputs_first(device.chip),
        "FEW_CHANNELS": problem.joint_steps,
        "BY_POSITION": skips(problem, config),
        "PRECISION": precision,
        **_sizes(problem),
    }
    grid = (blocks // problem.groups * len(steps), splits, problem.groups)
    launch = Launch.blocks(conv2d_grad_w, grid, arguments, config)
    if splits == 1:
        return Plan([launch], (out,))
    if len(set(steps)) == 1:
        return Plan([launch, sum_parts(parts, out)], (out,))
    return Plan([launch, _sum_taps(parts, out, launch)], (out,))


def sum_parts(parts: Tensor, out: Tensor) -> Launch:
    """Launch of the sum over splits, in blocks small enough to fill the processors; shapes alone give the order."""
    splits, size = parts.shape[0], out.numel()
    block = ELEMENTS
    while block > SMALLEST_BLOCK and math.ceil(size / block) < FULL_GRID:
        block //= 2
    # ROWS must not depend on the number of splits, which differs by batch size: each ROWS compiles a kernel of its own.
    arguments = {"parts_ptr": parts, "out_ptr": out, "splits": splits, "size": size}
    arguments |= {"ROWS": TILE // block, "BLOCK": block}
    return Launch(elementwise.sum_splits, (math.ceil(size / block),), arguments)


def _sum_taps(parts: Tensor, out: Tensor, launch: Launch) -> Launch:
    """Launch of the sum over splits where some taps have fewer splits than others."""
    arguments = {"parts_ptr": parts, "out_ptr": out, "splits": parts.shape[0], "size": out.numel(), "BLOCK": ELEMENTS}
    names = [name for name in sum_tap_splits.arg_names if name not in arguments]
    arguments |= {name: launch.arguments[name] for name in names}
    return Launch(sum_tap_splits, (math.ceil(out.numel() / ELEMENTS),), arguments)


def blocks_of_rows(rows: int, channels: int, elements: int = ELEMENTS) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and block sizes of a kernel that goes over [rows, channels] element by element."""
    block_n = min(128, 1 << max(4, (channels - 1).bit_length()))
    block_m = elements // block_n
    return (math.ceil(rows / block_m), math.ceil(channels / block_n)), {"BLOCK_M": block_m, "BLOCK_N": block_n}


def summing_blocks(rows: int, channels: int, elements: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and sizes of a kernel whose programs take up to ROW_PROGRAMS shares of the rows, and sum over them."""
    (steps, columns), blocks = blocks_of_rows(rows, channels, elements)
    share = max(1, math.ceil(steps / ROW_PROGRAMS)) * blocks["BLOCK_M"]
    return (math.ceil(rows / share), columns), {"M": rows, "N": channels, "rows_per_program": share, **blocks}


def _new_spikes(problem: Problem, x: Tensor, with_derivatives: bool) -> tuple[Tensor, Tensor | None]:
    """(y, gain), uninitialised; gain is None if not needed."""
    shape = (problem.batch, *problem.out_size, problem.out_channels)
    return x.new_empty(shape), x.new_empty(shape) if with_derivatives and problem.with_slope else None


def _sizes(problem: Problem) -> dict[str, int]:
    """Sizes of maps and kernel, and the kernel's geometry, as a contraction's kernel takes them."""
    rows, columns = problem.out_size
    return {
        "B": problem.batch,
        "H": problem.height,
        "W_in": problem.width,
        "C": problem.group_inputs,
        "P": rows,
        "Q": columns,
        "N": problem.group_outputs,
        "UNIT_C": math.gcd(problem.group_inputs, LARGEST_UNIT),
        "UNIT_N": math.gcd(problem.group_outputs, LARGEST_UNIT),
        "R": problem.kernel[0],
        "S": problem.kernel[1],
        "STRIDE_H": problem.stride[0],
        "STRIDE_W": problem.stride[1],
        "PAD_H": problem.padding[0],
        "PAD_W": problem.padding[1],
        "DILATION_H": problem.dilation[0],
        "DILATION_W": problem.dilation[1],
        "GROUPS": problem.groups,
    }


def _check_offsets(which: str, problem: Problem, config: Config) -> None:
    largest = largest_offset(problem, config)
    if largest >= WIDE:
        raise NotImplementedError(
            f"{which}: the images of a block must have fewer than 2³¹ elements; got {largest}. Use the torch backend."
        )
