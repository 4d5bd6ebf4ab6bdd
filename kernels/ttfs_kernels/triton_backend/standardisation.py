"""Weight standardisation of many layers in one launch, forward and backward: one program a neuron.

Layers come as tuples of pointers, which a launch passes like any argument: no table in memory, nothing to copy to the
device, and nothing that a captured graph could find changed. A program finds its layer by the numbers of neurons.
"""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false
from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttfs_kernels.triton_backend.launch import Launch

BLOCK = 1024  # weights of a neuron that are held at once
LAYERS = 32  # of one launch


@triton.jit
def standardise(
    weights,
    gains,
    out,
    stats_ptr,
    neurons,
    epsilon,
    FIRST: tl.constexpr,
    FAN_IN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = gain·(w − mean)/‖w − mean‖ of one neuron; stats [2, neurons] float32 = mean, 1/‖w − mean‖.

    FIRST: of each layer, the number of neurons before it. FAN_IN: of each layer.
    """
    neuron = tl.program_id(0)
    w = weights[0]
    gain = gains[0]
    to = out[0]
    first = 0
    size = FAN_IN[0]
    for layer in tl.static_range(1, len(FIRST)):
        here = neuron >= FIRST[layer]
        w = tl.where(here, weights[layer], w)
        gain = tl.where(here, gains[layer], gain)
        to = tl.where(here, out[layer], to)
        first = tl.where(here, FIRST[layer], first)
        size = tl.where(here, FAN_IN[layer], size)
    row = neuron - first
    w += row.to(tl.int64) * size
    to += row.to(tl.int64) * size
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sums += tl.load(w + i, mask=i < size, other=0.0).to(tl.float32)
    mean = tl.sum(sums) / size
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        centred = tl.load(w + i, mask=i < size, other=0.0).to(tl.float32) - mean
        squares += tl.where(i < size, centred * centred, 0.0)
    inverse_norm = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(squares) + epsilon))
    scale = tl.load(gain + row).to(tl.float32) * inverse_norm
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        centred = tl.load(w + i, mask=i < size, other=0.0).to(tl.float32) - mean
        tl.store(to + i, (scale * centred).to(to.dtype.element_ty), mask=i < size)
    tl.store(stats_ptr + neuron, mean)
    tl.store(stats_ptr + neurons + neuron, inverse_norm)


@triton.jit
def standardise_backward(
    grads,
    weights,
    gains,
    grad_weights,
    grad_gains,
    stats_ptr,
    neurons,
    FIRST: tl.constexpr,
    FAN_IN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """With u = (w − mean)/‖w − mean‖ and g = grad: grad_gain = Σ g·u, grad_w = gain/‖…‖·(g − mean(g) − u·Σ g·u)."""
    neuron = tl.program_id(0)
    g = grads[0]
    w = weights[0]
    gain = gains[0]
    grad_w = grad_weights[0]
    grad_gain = grad_gains[0]
    first = 0
    size = FAN_IN[0]
    for layer in tl.static_range(1, len(FIRST)):
        here = neuron >= FIRST[layer]
        g = tl.where(here, grads[layer], g)
        w = tl.where(here, weights[layer], w)
        gain = tl.where(here, gains[layer], gain)
        grad_w = tl.where(here, grad_weights[layer], grad_w)
        grad_gain = tl.where(here, grad_gains[layer], grad_gain)
        first = tl.where(here, FIRST[layer], first)
        size = tl.where(here, FAN_IN[layer], size)
    row = neuron - first
    at = row.to(tl.int64) * size
    g += at
    w += at
    grad_w += at
    mean = tl.load(stats_ptr + neuron)
    inverse_norm = tl.load(stats_ptr + neurons + neuron)
    sums = tl.zeros((BLOCK,), tl.float32)
    products = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        grad = tl.load(g + i, mask=i < size, other=0.0).to(tl.float32)
        unit = (tl.load(w + i, mask=i < size, other=0.0).to(tl.float32) - mean) * inverse_norm
        sums += grad
        products += grad * unit
    mean_grad = tl.sum(sums) / size
    along = tl.sum(products)
    scale = tl.load(gain + row).to(tl.float32) * inverse_norm
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        grad = tl.load(g + i, mask=i < size, other=0.0).to(tl.float32)
        unit = (tl.load(w + i, mask=i < size, other=0.0).to(tl.float32) - mean) * inverse_norm
        tl.store(grad_w + i, (scale * (grad - mean_grad - unit * along)).to(grad_w.dtype.element_ty), mask=i < size)
    tl.store(grad_gain + row, along.to(grad_gain.dtype.element_ty))


def forward(
    weights: Sequence[Tensor], gains: Sequence[Tensor], dtype: torch.dtype, epsilon: float
) -> tuple[list[Launch], list[Tensor], list[Tensor]]:
    """(launches, standardised weights, stats [2, neurons] of each launch); weights are rows in memory, one a neuron."""
    out, stats, launches = [torch.empty_like(weight, dtype=dtype) for weight in weights], [], []
    for here in _groups(len(weights)):
        neurons = sum(weight.shape[0] for weight in weights[here])
        stats.append(weights[0].new_empty((2, neurons), dtype=torch.float32))
        tensors = {"weights": tuple(weights[here]), "gains": tuple(gains[here]), "out": tuple(out[here])}
        sizes = {"stats_ptr": stats[-1], "neurons": neurons, "epsilon": epsilon}
        launches.append(Launch(standardise, (neurons,), tensors | sizes | _layers(weights[here])))
    return launches, out, stats


def backward(
    grads: Sequence[Tensor], weights: Sequence[Tensor], gains: Sequence[Tensor], stats: Sequence[Tensor]
) -> tuple[list[Launch], list[Tensor], list[Tensor]]:
    """(launches, gradients of weights, of gains), in the memory formats of both; those of `grads` are the weights'."""
    of_weights, of_gains, launches = list(map(torch.empty_like, weights)), list(map(torch.empty_like, gains)), []
    names = {"grads": grads, "weights": weights, "gains": gains, "grad_weights": of_weights, "grad_gains": of_gains}
    for here, stat in zip(_groups(len(weights)), stats, strict=True):
        tensors = {name: tuple(values[here]) for name, values in names.items()}
        sizes = {"stats_ptr": stat, "neurons": stat.shape[1]}
        launches.append(Launch(standardise_backward, (stat.shape[1],), tensors | sizes | _layers(weights[here])))
    return launches, of_weights, of_gains


def _groups(layers: int) -> Iterator[slice]:
    """The layers of each launch."""
    return (slice(first, first + LAYERS) for first in range(0, layers, LAYERS))


def _layers(weights: Sequence[Tensor]) -> dict[str, object]:
    first = accumulate((weight.shape[0] for weight in weights[:-1]), initial=0)
    return {"FIRST": tuple(first), "FAN_IN": tuple(weight[0].numel() for weight in weights), "BLOCK": BLOCK}
