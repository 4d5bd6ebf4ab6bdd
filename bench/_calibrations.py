"""Ways to calibrate a copied network that `bench/conversion.py` compares: ours, and what did not pay.

Those that call `calibrate` give an analog encoder its margin, too.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels.rule import fire
from ttfs_triton.convert import Converted, calibrate
from ttfs_triton.convert.fit_range import rows_of
from ttfs_triton.nn import DFTConv2d, DFTLinear

Layer = DFTConv2d | DFTLinear
Method = Callable[[Converted, Tensor], object]


def fit_channels(converted: Converted, images: Tensor, *, what: str, steps: int = 150, samples: int = 8192) -> None:
    """Per channel, by Adam on the squared difference: initial potential b, gain g, weights centred by c.

    With P = Σ w·x, Q = Σ w·m, X = Σ x and M = Σ m over a neuron's inputs, A = g·P − c·X + b and W = g·Q − c·M. A
    centred channel starts where its mean slope is 0.
    """
    for layer, x, target in _layer_by_layer(converted, images):
        assert layer.bias is not None
        m, ones = (x > 0).to(x.dtype), torch.ones_like(layer.weight[:1])
        with torch.no_grad():
            sums = [rows_of(_contract(layer, v, w)) for w in (layer.weight, ones) for v in (x, m)]
            kept = torch.randperm(len(sums[0]))[:samples]
            P, Q, X, M, wanted = (rows[kept] for rows in (*sums, rows_of(target)))
            gain, centre, initial = torch.ones(P.shape[1]), torch.zeros(P.shape[1]), layer.bias.detach().clone()
            if "c" in what:
                centre = Q.mean(0) / M.mean().clamp_min(1e-6)
                initial += centre * X.mean()
        fitted = {"g": gain, "c": centre, "b": initial}
        # A step in c moves a neuron by as many inputs as are active.
        rates = {"g": 0.05, "c": 0.05 / max(M.mean().item(), 1), "b": 0.05}
        optimizer = torch.optim.Adam([{"params": [fitted[n].requires_grad_()], "lr": rates[n]} for n in what])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            slope = layer.neuron.psp_persistence * (gain * Q - centre * M)
            activations, _ = fire(gain * P - centre * X + initial, slope)
            optimizer.zero_grad()
            (activations - wanted).square().mean(0).sum().backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            shape = (-1, *[1] * (layer.weight.dim() - 1))
            layer.weight.mul_(gain.view(shape)).sub_(centre.view(shape))
            layer.bias.copy_(initial)


def fit_weights(converted: Converted, images: Tensor, *, steps: int = 100, batch_size: int = 32) -> None:
    """All weights of a layer, behind ours, by Adam on the squared difference over random batches of the images."""
    calibrate(converted.network, converted.ann, images)
    for layer, x, target in _layer_by_layer(converted, images):
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
        neuron = layer.neuron
        layer.neuron = dataclasses.replace(neuron, surrogate_width=0.5)  # silent neurons learn, too
        for _ in range(steps):
            chosen = torch.randint(0, len(x), (batch_size,))
            optimizer.zero_grad()
            ((layer(x[chosen]) - target[chosen]).square().mean() * target.shape[1]).backward()
            optimizer.step()
            schedule.step()
        layer.neuron = neuron


def _layer_by_layer(converted: Converted, images: Tensor):
    """(spiking layer, its inputs, the ANN's activations): each layer's inputs are made when those before are fitted."""
    spiking, analog = images, converted.ann.hidden(images)
    for name, layer in converted.network.features.named_children():
        if isinstance(layer, Layer):
            yield layer, spiking, analog[name]
        with torch.no_grad():
            spiking = layer(spiking)


def _contract(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, DFTLinear):
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, layer.stride, layer.padding)


ALTERNATIVES: dict[str, Method] = {
    "copied": lambda converted, images: None,
    "initial potentials": lambda converted, images: calibrate(converted.network, converted.ann, images),
    "initial potentials and gains": partial(fit_channels, what="gb"),
    "centred weights, gains and initial potentials": partial(fit_channels, what="gcb"),
    "all weights of a layer": fit_weights,
}
