"""Random operands of a layer, its results in float64, and whether a result that was found agrees with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels.neuron import Neuron
from ttfs_kernels.rule import fire, silent_derivative, vanishing
from ttfs_kernels.triton_backend.problem import Problem

Results = tuple[Tensor, ...]

SILENT = 0.4  # share of silent inputs
CHECKED = 8  # images of a batch that are compared with float64
SURROGATE_WIDTH = 0.5  # the recipes'
# Relative error of a rounded result. Float32: sums of thousands of products; libraries also transform their operands.
ROUNDING = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-18}
TF32_ROUNDING = 2.0**-10
BORDER = 0.01  # potentials that rounding to 16 bits may carry across a firing border


@dataclass(frozen=True)
class Operands:
    """Random operands of all passes of a layer, as rows in memory.

    Few potentials are near the firing borders, where rounding decides whether a neuron fires. Some channels are silent
    and some saturated, by their bias; the others fire inside the window.

    Attributes:
        x: [B, H, W, C] activations, of which about 40 % are 0.
        weight: [N, R, S, C / groups].
        bias: [N] float32.
        pair: [2, B, P, Q, N], h and slope_h; for σ = 0 [1, ...], h alone.
        delayed: skip [B, P, Q, N] and its weights [N] float32; empty without a skip.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    pair: Tensor
    delayed: tuple[Tensor, ...] = ()

    @property
    def h(self) -> Tensor:
        """[B, P, Q, N]."""
        return self.pair[0]

    @property
    def slope_h(self) -> Tensor | None:
        """[B, P, Q, N]; None for σ = 0."""
        return self.pair[1] if len(self.pair) == 2 else None

    def from_images(self, images: Tensor) -> Operands:
        """The same, with a gradient from some images of the batch alone."""
        pair = torch.zeros_like(self.pair)
        pair[:, images] = self.pair[:, images]
        return replace(self, pair=pair)


def random_operands(problem: Problem, device: torch.device, seed: int = 0) -> Operands:
    """Operands of a layer; the same for a seed and device type."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, device=device, generator=generator)

    images = (problem.batch, problem.height, problem.width, problem.in_channels)
    # Half a threshold from all inputs that fire, and little noise: 0 < A < 1 and A + W > 0 without bias.
    drive = 0.5 / ((1 - SILENT) * problem.depth) + 0.1 / problem.depth**0.5 * normal(
        problem.out_channels, *problem.kernel, problem.group_inputs
    )
    kinds = uniform(problem.out_channels)
    pair = normal(2, problem.batch, *problem.out_size, problem.out_channels).to(problem.dtype)
    delayed: tuple[Tensor, ...] = ()
    if problem.skip:  # weights that leave potentials between the firing borders
        spikes = (uniform(*pair.shape[1:]) * (uniform(*pair.shape[1:]) > SILENT)).to(problem.dtype)
        delayed = spikes, 0.3 * uniform(problem.out_channels)
    return Operands(
        (uniform(*images) * (uniform(*images) > SILENT)).to(problem.dtype),
        drive.to(problem.dtype),
        1.5 * (kinds > 0.9).float() - 1.5 * (kinds < 0.3).float(),
        pair if problem.with_slope else pair[:1],
        delayed,
    )


def checked_images(batch: int, device: torch.device) -> Tensor:
    """Indices of the images that are compared with float64, from the first to the last."""
    return torch.linspace(0, max(0, batch - 1), min(batch, CHECKED), device=device).round().long()


def compare(found: Tensor, expected: Tensor, precision: str) -> tuple[float, bool]:
    """Largest error in units of the expected values' root mean square, and whether rounding explains the errors.

    Args:
        found: in the dtype whose rounding is allowed.
        expected: float64, same shape; NaN where nothing is compared.
        precision: of float32 products, "ieee" or "tf32".
    """
    if found.shape != expected.shape:
        return float("inf"), False
    kept = ~expected.isnan()
    if not kept.any():
        return float("inf"), False
    expected = expected[kept]
    rounding = TF32_ROUNDING if found.dtype == torch.float32 and precision == "tf32" else ROUNDING[found.dtype]
    scale = expected.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    error = (found[kept].double() - expected) / scale
    largest = error.abs().max().item()
    # Written so that a NaN that was found agrees with nothing.
    return largest, largest <= 24 * rounding and error.square().mean().sqrt().item() <= 3 * rounding


def expected_results(which: str, problem: Problem, operands: Operands, images: Tensor) -> Results:
    """Float64 results: of some images, or for grad_w from some images."""
    x = _maps(operands.x[images])
    weight = _maps(operands.weight)
    mask = (x > 0).double()
    if which == "forward":
        A = F.conv2d(x, weight, operands.bias.double(), *problem.geometry)
        skip, skip_weight = torch.zeros_like(A), operands.bias.new_zeros(1, 1, 1)
        if operands.delayed:
            skip, skip_weight = _maps(operands.delayed[0][images]), operands.delayed[1][:, None, None]
        A = A + skip_weight * skip
        if not problem.with_slope:
            return (_rows(A.clamp(0, 1)),)
        W = F.conv2d(mask, weight, None, *problem.geometry) + skip_weight * (skip > 0)
        y, gain = fire(A, W)
        if problem.surrogate:
            gain = gain + silent_derivative(A, W, neuron_of(problem))
        # The gain jumps where a neuron just fires, or just fires at once.
        at_border = ((A + W).abs() < BORDER) | ((A - 1).abs() < BORDER)
        return _rows(y), _rows(gain.masked_fill(at_border, torch.nan))
    h = _maps(operands.h[images])
    if which == "grad_x":
        grad = _gradients(problem, h, x, weight)[0]
        if problem.with_slope:
            grad = grad * mask
        if problem.surrogate and operands.slope_h is not None:
            by_mask = _gradients(problem, _maps(operands.slope_h[images]), x, weight)[0]
            grad = grad + by_mask * vanishing(x, neuron_of(problem))
        return (_rows(grad),)
    grad = _gradients(problem, h, x, weight)[1]
    if operands.slope_h is not None:
        grad = grad + _gradients(problem, _maps(operands.slope_h[images]), mask, weight)[1]
    return (_rows(grad),)


def _maps(rows: Tensor) -> Tensor:
    return rows.double().permute(0, 3, 1, 2)


def _rows(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1)


def _gradients(problem: Problem, h: Tensor, x: Tensor, weight: Tensor) -> Sequence[Tensor]:
    stride, padding, dilation, groups = problem.geometry
    return torch.ops.aten.convolution_backward(
        h, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, True, False]
    )


def neuron_of(problem: Problem) -> Neuron:
    """The neuron that a problem's flags stand for: the paper's, or the two-phase neuron."""
    return Neuron(float(problem.with_slope), surrogate_width=SURROGATE_WIDTH if problem.surrogate else 0.0)


def windows(problem: Problem, found: Results, expected: Results) -> Iterable[tuple[Tensor, Tensor]]:
    """Found and expected activations and gains of windows, from expected ones of all neurons.

    Where several are nearly equal, rounding decides which wins: the one found must be as early as the earliest.
    """
    y, *gain, winner = found
    earliest = F.max_pool2d(expected[0].permute(0, 3, 1, 2), problem.pool)
    yield y, _rows(earliest)
    for result, all_neurons in zip((y, *gain), expected, strict=True):
        rows, columns = problem.pooled_size
        side = problem.pool
        kept = all_neurons[:, : rows * side, : columns * side]
        kept = kept.unflatten(2, (columns, side)).unflatten(1, (rows, side)).movedim(2, 3).flatten(3, 4)
        yield result, kept.gather(3, winner.long().unsqueeze(3)).squeeze(3)
