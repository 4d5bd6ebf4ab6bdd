"""Forward and backward of both operators: layouts, the choice of a provider for each pass, nothing else.

`Passes` are found once for all calls that agree in shapes, dtypes, device and options. See `programs.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ttfs_kernels.backends import float32_precisions
from ttfs_kernels.contraction import Geometry
from ttfs_kernels.direct import below
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.registration import all_operands
from ttfs_kernels.triton_backend import library, passes
from ttfs_kernels.triton_backend.choice import Choice, choose
from ttfs_kernels.triton_backend.configs import Config, default_config
from ttfs_kernels.triton_backend.launch import device_of, precision_of
from ttfs_kernels.triton_backend.passes import Plan
from ttfs_kernels.triton_backend.problem import Problem
from ttfs_kernels.triton_backend.programs import Repeated, remembered

ROWS, MAPS = torch.contiguous_format, torch.channels_last
Gradients = tuple[Tensor | None, ...]


class Passes:
    """Both passes of a layer on operands of one shape, dtype and device, each planned when it is first asked for.

    Operands in another layout are copied.

    Args:
        problem: the layer.
        device: of all operands.
        layout: of all but the bias: channels-last for maps.
        neuron: how it fires and how it is differentiated.
        with_derivatives: whether a backward pass will follow a forward pass.
        backend: "triton", or "auto" for the faster provider of each pass.
        fuse_pool: pool in the epilogue of the convolution; None: where that was measured to be faster.
    """

    def __init__(
        self,
        problem: Problem,
        device: torch.device,
        layout: torch.memory_format,
        neuron: Neuron,
        with_derivatives: bool,
        backend: str,
        fuse_pool: bool | None = None,
    ) -> None:
        self.problem, self.device, self.layout, self.neuron, self.backend = problem, device, layout, neuron, backend
        self.with_derivatives, self.fuse_pool = with_derivatives, fuse_pool
        self._forward: Callable[..., Any] | None = None
        self._backward: dict[Hashable, Callable[..., Any]] = {}

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        skip: Tensor | None = None,
        skip_weight: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """(y, gain, winner): of the two latter None what there is not, see `passes.forward`."""
        if self._forward is None:
            options = self.neuron, self.with_derivatives, self.backend, self.fuse_pool
            self._forward = _forward(self.problem, self.device, *options)
        layout = self.layout
        x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
        bias = None if bias is None else bias.contiguous()
        y, gain, *winner = self._forward(x, weight, bias, *_contiguous(skip, skip_weight, layout))
        return y, gain, winner[0] if winner else None

    def backward(
        self,
        needs: Sequence[bool],
        grad: Tensor,
        x: Tensor,
        y: Tensor,
        gain: Tensor | None,
        winner: Tensor | None,
        weight: Tensor,
        skip: Tensor | None = None,
        skip_weight: Tensor | None = None,
    ) -> Gradients:
        """Gradients of x, weight and bias, and of skip and its weights if there are; None where not needed."""
        key = (*needs, grad.dtype)
        run = self._backward.get(key)
        if run is None:
            run = _backward(self.problem, self.device, self.neuron, tuple(needs), self.backend)
            self._backward[key] = run
        layout = self.layout
        return run(
            grad.contiguous(memory_format=layout),
            x.contiguous(memory_format=layout),
            y.contiguous(memory_format=layout),
            None if gain is None else gain.contiguous(memory_format=layout),
            None if winner is None else winner.contiguous(memory_format=layout),
            weight.contiguous(memory_format=layout),
            *_contiguous(skip, skip_weight, layout),
        )


def linear(operands: Sequence[Any], neuron: Neuron, with_derivatives: bool, backend: str) -> Passes:
    """Of x [M, K], weight [N, K], bias, skip [M, N] and its weights; of the last three None what there is not."""
    x, weight, bias, skip, skip_weight = all_operands(operands)
    options = (neuron, with_derivatives, backend)
    key = ("linear", x.shape, weight.shape, *_kinds(x, bias, skip_weight), *options)
    problem = Problem.of_linear
    return remembered(key, lambda: Passes(problem(x, weight, neuron, skip is not None), x.device, ROWS, *options))


def conv2d(
    operands: Sequence[Any],
    geometry: Geometry,
    neuron: Neuron,
    with_derivatives: bool,
    backend: str,
    pool: int = 1,
    fuse_pool: bool | None = None,
) -> Passes:
    """Of x [B, C, H, W], weight [N, C / groups, R, S], and as `linear`.

    Args:
        pool: side of the windows of which the earliest spike is passed on; above 1, the winner says which it was.
    """
    x, weight, bias, skip, skip_weight = all_operands(operands)
    options = (neuron, with_derivatives, backend, fuse_pool)
    key = ("conv2d", x.shape, weight.shape, *map(tuple, geometry[:3]), geometry.groups, pool)
    key += (*_kinds(x, bias, skip_weight), *options)
    about = x, weight, geometry, neuron, pool, skip is not None
    return remembered(key, lambda: Passes(Problem.of_conv2d(*about), x.device, MAPS, *options))


def _kinds(x: Tensor, bias: Tensor | None, skip_weight: Tensor | None) -> tuple[object, ...]:
    """What a plan depends on beside shapes and options."""
    precisions = float32_precisions() if x.dtype == torch.float32 else None
    dtypes = (None if tensor is None else tensor.dtype for tensor in (bias, skip_weight))
    return x.dtype, x.device, *dtypes, precisions


def _contiguous(skip: Tensor | None, skip_weight: Tensor | None, layout: torch.memory_format) -> tuple[Tensor, ...]:
    """Both, or neither."""
    if skip is None or skip_weight is None:
        return ()
    return skip.contiguous(memory_format=layout), skip_weight.contiguous()


def _rows(tensor: Tensor) -> Tensor:
    """Channels-last maps [B, C, H, W] → [B, H, W, C], a view; other tensors as they are."""
    return tensor.permute(0, 2, 3, 1).contiguous() if tensor.dim() == 4 else tensor


def _shaped(result: Tensor | None, like: Tensor) -> Tensor | None:
    """A result [B, H, W, C] as the operand it belongs to has its dimensions: maps, or rows."""
    if result is None:
        return None
    return result.permute(0, 3, 1, 2) if like.dim() == 4 else result.view(result.shape[0], result.shape[-1])


def _forward(
    problem: Problem,
    device: torch.device,
    neuron: Neuron,
    with_derivatives: bool,
    backend: str,
    fuse_pool: bool | None = None,
) -> Callable[..., Any]:
    """From operands to (y, gain) and, with a pool, winner, for all operands of this shape and device."""
    chip, precision = device_of(device).chip, precision_of(problem)
    config = _fused_pool(problem, device, backend, fuse_pool) if problem.pool > 1 else None
    # What the convolution computes; what it leaves to do, a kernel of its own does.
    convolved = problem if config is not None else problem.unpooled
    if config is None:
        config = _choose("forward", convolved, device, backend).config

    pool = Repeated(lambda y, gain: passes.pool(problem, y, gain, with_derivatives))

    @below
    def by_library(x: Tensor, weight: Tensor, bias: Tensor | None, *skip: Tensor) -> tuple[Any, ...]:
        spikes = library.forward(convolved, _rows(x), _rows(weight), bias, neuron, with_derivatives, *map(_rows, skip))
        return tuple(_shaped(result, x) for result in (spikes if convolved == problem else pool(*spikes)))

    def plan(x: Tensor, weight: Tensor, bias: Tensor | None, *skip: Tensor) -> Plan:
        assert config is not None
        operands, delayed = (_rows(x), _rows(weight), bias), map(_rows, skip)
        options = neuron, with_derivatives, config, precision, chip
        launches, spikes = passes.forward(convolved, *operands, *options, *delayed)
        if convolved != problem:
            y, gain = spikes
            assert y is not None
            pooling, spikes = passes.pool(problem, y, gain, with_derivatives)
            launches = [*launches, *pooling]
        return Plan(launches, tuple(_shaped(result, x) for result in spikes))

    return by_library if config is None else Repeated(plan)


def _fused_pool(problem: Problem, device: torch.device, backend: str, wanted: bool | None) -> Config | None:
    """Blocks of the convolution that also pools; None for a kernel of its own after the convolution."""
    if wanted is False:
        return None
    config = _choose("forward", problem, device, backend).config
    if config is None and wanted:
        this = device_of(device)
        config = default_config("forward", problem, this.chip, precision_of(problem), this.processors)
    return config


def _backward(
    problem: Problem,
    device: torch.device,
    neuron: Neuron,
    needs: tuple[bool, ...],
    backend: str,
) -> Callable[..., Any]:
    """From (grad, x, y, gain, winner, weight) to gradients, for all operands of this shape and device."""
    pooled, problem = problem, problem.unpooled
    needs_x, needs_weight, needs_bias, *needs_skip = needs
    configs = {
        which: _choose(which, problem, device, backend).config
        for which, needed in (("grad_x", needs_x), ("grad_w", needs_weight))
        if needed
    }
    precision = precision_of(problem)

    def plan_local(grad: Tensor, y: Tensor, gain: Tensor | None, winner: Tensor | None, *skip: Tensor) -> Plan:
        gain, winner = (None if kept is None else _rows(kept) for kept in (gain, winner))
        with_slope_h = needs_weight or neuron.has_surrogate
        options = neuron, with_slope_h, needs_bias, winner
        delayed = passes.Delayed(_rows(skip[0]), skip[1], *needs_skip[:2]) if skip else None
        plan = passes.local_gradient(pooled, _rows(grad), _rows(y), gain, *options, delayed)
        if delayed is None:
            return plan
        pair, grad_bias, grad_skip, grad_skip_weight = plan.outputs
        return Plan(plan.launches, (pair, grad_bias, _shaped(grad_skip, grad), grad_skip_weight))

    def plan_x(h: Tensor, slope_h: Tensor | None, x: Tensor, weight: Tensor) -> Plan:
        config = configs["grad_x"]
        assert config is not None
        processors = device_of(device).processors
        plan = passes.grad_x(problem, h, _rows(x), _rows(weight), config, precision, slope_h, neuron, processors)
        return Plan(plan.launches, (_shaped(plan.outputs[0], x),))

    def plan_w(h: Tensor, slope_h: Tensor | None, x: Tensor, weight: Tensor) -> Plan:
        config = configs["grad_w"]
        assert config is not None
        plan = passes.grad_w(problem, h, slope_h, _rows(x), config, precision, device_of(device))
        return Plan(plan.launches, (_shaped(plan.outputs[0], weight),))

    def plan_all(
        grad: Tensor, x: Tensor, y: Tensor, gain: Tensor | None, winner: Tensor | None, weight: Tensor, *skip: Tensor
    ) -> Plan:
        plans = [plan_local(grad, y, gain, winner, *skip)]
        pair, *others = plans[0].outputs
        assert pair is not None
        h, slope_h = passes.halves(pair)
        plans += [plan(h, slope_h, x, weight) for plan, needed in ((plan_x, needs_x), (plan_w, needs_weight)) if needed]
        grads = iter([plan.outputs[0] for plan in plans[1:]])
        launches = [launch for plan in plans for launch in plan.launches]
        return Plan(launches, (next(grads) if needs_x else None, next(grads) if needs_weight else None, *others))

    if None not in configs.values():
        return Repeated(plan_all)
    local, by_kernel_x, by_kernel_w = Repeated(plan_local), Repeated(plan_x), Repeated(plan_w)

    @below
    def by_both(
        grad: Tensor, x: Tensor, y: Tensor, gain: Tensor | None, winner: Tensor | None, weight: Tensor, *skip: Tensor
    ) -> Gradients:
        pair, *others = local(grad, y, gain, winner, *skip)
        assert pair is not None
        h, slope_h = passes.halves(pair)
        grad_x = grad_w = None
        if needs_x and configs["grad_x"] is None:
            grad_x = _shaped(library.grad_x(problem, pair, _rows(x), _rows(weight), neuron), x)
        elif needs_x:
            (grad_x,) = by_kernel_x(h, slope_h, x, weight)
        if needs_weight and configs["grad_w"] is None:
            grad_w = _shaped(library.grad_w(problem, pair, _rows(x), _rows(weight)), weight)
        elif needs_weight:
            (grad_w,) = by_kernel_w(h, slope_h, x, weight)
        return grad_x, grad_w, *others

    return by_both


def _choose(which: str, problem: Problem, device: torch.device, backend: str) -> Choice:
    return choose(which, problem, device_of(device), precision_of(problem), backend)
