"""The passes of a layer by our kernels, or where a table says so by a library call.

PyTorch's compiler sees each pass as one operator: it cannot trace launches and their planning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttfs_kernels.autograd import Kept, Operands
from ttfs_kernels.contraction import Geometry
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton_backend import library, passes
from ttfs_kernels.triton_backend.choice import choose
from ttfs_kernels.triton_backend.configs import Config, default_config
from ttfs_kernels.triton_backend.launch import device_of, precision_of
from ttfs_kernels.triton_backend.problem import Problem


@dataclass(frozen=True)
class TritonLayer:
    """Keeps input, weight, activations, for σ > 0 the gain, and with a pool the winners for the backward pass.

    Attributes:
        geometry: of a convolution; None if the layer is fully connected.
        neuron: how it fires and how it is differentiated.
        backend: "triton", our kernels for every pass; or "auto", a library call where a table says that it is faster.
        pool, fuse_pool: as in `ops.dft_conv2d`.
    """

    geometry: Geometry | None
    neuron: Neuron
    backend: str
    pool: int = 1
    fuse_pool: bool | None = None

    def forward(self, operands: Operands, with_derivatives: bool) -> tuple[tuple[Tensor], Kept]:
        x, weight, _, skip, skip_weight = operands
        run: Any = _forward_operator if torch.compiler.is_compiling() else _forward
        kept = run(*operands, *self._plain(), self.fuse_pool, with_derivatives)
        return (kept[0],), (x, weight, skip, skip_weight, *kept)

    def backward(self, grad: Tensor, kept: Kept, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        run: Any = _backward_operator if torch.compiler.is_compiling() else _backward
        found = iter(run(grad, *kept[:4], list(kept[4:]), *self._plain(), list(needs)))
        return tuple(next(found) if needed else None for needed in needs)

    def _plain(self) -> tuple[list[int], list[float], int, str]:
        """As an operator's schema takes them."""
        numbers = [] if self.geometry is None else [n for pair in self.geometry[:3] for n in pair]
        numbers += [] if self.geometry is None else [self.geometry.groups]
        return numbers, self.neuron.pack(), self.pool, self.backend


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    geometry: Sequence[int],
    neuron: Sequence[float],
    pool: int,
    backend: str,
    fuse_pool: bool | None,
    with_derivatives: bool,
) -> list[Tensor]:
    """Activations, then if there are any gain and winner, for the backward pass."""
    properties = Neuron.unpack(neuron)
    problem = Problem.of(x, weight, _geometry(geometry), properties, pool, skip is not None)
    chip, precision, options = device_of(x.device).chip, precision_of(problem), (properties, with_derivatives)
    config = _fused_pool(problem, x.device, backend, fuse_pool)
    # What the convolution computes; what it leaves to do, a kernel of its own does.
    convolved = problem if config is not None else problem.unpooled
    config = config or config_of("forward", convolved, x.device, backend)
    operands = rows_of(x), rows_of(weight), None if bias is None else bias.contiguous()
    delayed = () if skip is None or skip_weight is None else (rows_of(skip), skip_weight.contiguous())
    if config is None:
        spikes = library.forward(convolved, *operands, *options, *delayed)
    else:
        spikes = passes.forward(convolved, *operands, *options, config, precision, chip, *delayed).run()
    if convolved != problem:
        y, gain = spikes
        spikes = passes.pool(problem, y, gain, with_derivatives).run()
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
    pool: int,
    backend: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x, weight, bias, skip and skip_weight, without those not needed; `kept` is from `_forward`."""
    needs_x, needs_weight, needs_bias, *_ = needs
    properties = Neuron.unpack(neuron)
    pooled = Problem.of(x, weight, _geometry(geometry), properties, pool, skip is not None)
    y, *others = map(rows_of, kept)
    gain = others[0] if properties.has_slope else None
    winner = others[-1] if pool > 1 else None
    delayed = () if skip is None or skip_weight is None else (rows_of(skip), skip_weight.contiguous())
    options = properties, needs_weight or properties.has_surrogate, needs_bias, winner
    pair, *by_neuron = passes.local_gradient(pooled, rows_of(grad), y, gain, *options, *delayed).run()
    if delayed:
        by_neuron[1] = shaped(by_neuron[1], grad)
    found = contract_gradients(pooled.unpooled, pair, x, weight, properties, backend, (needs_x, needs_weight))
    gradients = zip((*found, *by_neuron), needs, strict=False)
    return [gradient for gradient, needed in gradients if needed and gradient is not None]


def contract_gradients(
    problem: Problem,
    pair: Tensor,
    x: Tensor,
    weight: Tensor,
    neuron: Neuron,
    backend: str,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and weight, None where not needed; `pair` holds those of both potentials, see `passes.halves`."""
    device, precision = device_of(x.device), precision_of(problem)
    h, slope_h = passes.halves(pair)
    operands = rows_of(x), rows_of(weight)
    grad_x = grad_weight = None
    if needs[0]:
        config = config_of("grad_x", problem, x.device, backend)
        if config is None:
            grad_x = library.grad_x(problem, pair, *operands, neuron)
        else:
            options = config, precision, slope_h, neuron, device.processors
            (grad_x,) = passes.grad_x(problem, h, *operands, *options).run()
        grad_x = shaped(grad_x, x)
    if needs[1]:
        config = config_of("grad_w", problem, x.device, backend)
        if config is None:
            grad_weight = library.grad_w(problem, pair, *operands)
        else:
            (grad_weight,) = passes.grad_w(problem, h, slope_h, operands[0], config, precision, device).run()
        grad_weight = shaped(grad_weight, weight)
    return grad_x, grad_weight


# As fakes, too: see `Launch.run`.
_forward_operator = torch.library.custom_op("ttfs::forward", _forward, mutates_args=())
_backward_operator = torch.library.custom_op("ttfs::backward", _backward, mutates_args=())
_forward_operator.register_fake(_forward)
_backward_operator.register_fake(_backward)


def _fused_pool(problem: Problem, device: torch.device, backend: str, wanted: bool | None) -> Config | None:
    """Blocks of a convolution that pools in its epilogue; None without a pool, or if `passes.pool` is to follow."""
    if problem.pool == 1 or wanted is False:
        return None
    config = config_of("forward", problem, device, backend)
    if config is None and wanted:
        this = device_of(device)
        config = default_config("forward", problem, this.chip, precision_of(problem), this.processors)
    return config


def config_of(which: str, problem: Problem, device: torch.device, backend: str) -> Config | None:
    """Blocks of our kernel, or None for the library."""
    return choose(which, problem, device_of(device), precision_of(problem), backend).config


def _geometry(numbers: Sequence[int]) -> Geometry | None:
    return Geometry(numbers[:2], numbers[2:4], numbers[4:6], numbers[6]) if numbers else None


def rows_of(tensor: Tensor) -> Tensor:
    """Maps [B, C, H, W] → [B, H, W, C], a view of channels-last ones; matrices as they are. Copied if scattered."""
    return (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).contiguous()


def shaped(result: Tensor, like: Tensor) -> Tensor:
    """A result [B, H, W, C] in the dimensions of an operand: maps [B, C, H, W], or rows [B, C]."""
    return result.permute(0, 3, 1, 2) if like.dim() == 4 else result.view(result.shape[0], result.shape[-1])
