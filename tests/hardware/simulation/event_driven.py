"""Exact event-driven reference in float64, for small networks: no clock, no closed form of the whole layer.

Each neuron sorts the spikes that reach it by time, its potential is integrated from event to event, and the crossing
with the falling threshold is solved on the piece where it lies.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_triton.nn.coding import AnalogEncoder, SignedEncoder
from ttfs_triton.nn.folding import plain_skip_weights
from ttfs_triton.nn.graph import Stage
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear
from ttfs_triton.nn.readout import PotentialReadout, Readout
from ttfs_triton.nn.trace import network_graph
from ttfs_triton.nn.weighted import WeightedConv2d


class EventDrivenRun(NamedTuple):
    """Spikes of a network, for N samples; the unit of time is a window.

    Attributes:
        spike_times: for each stage by name, [N, ...] float64 times from the image's start, before pooling; inf for
            silent neurons. Stage l fires in [l, l + 1); a readout on its own ramp, θ·(1 − s/S), in [l, l + S).
        potential: [N, classes] float64, in threshold heights: what the readout's logits are, of a `PotentialReadout`;
            the potential at the output window's start, V₀ included, of a `FirstSpikeReadout`.
    """

    spike_times: dict[str, Tensor]
    potential: Tensor


@torch.no_grad()
def event_driven(model: nn.Module, images: Tensor) -> EventDrivenRun:
    """Run a network event by event.

    Memory and time grow with neurons · fan-in, since every neuron sorts its own events.

    Args:
        model: see `network_graph`.
        images: [N, ...] as the model takes them.
    Raises:
        NetworkError: as `network_graph`, or a layer that does not spike.
    Source: Wei et al., ICCV 2023, Eq. 2-7.
    """
    graph = network_graph(model, images.shape[1:])
    spike_times: dict[str, Tensor] = {}
    potential = torch.empty(0)

    # Between layers times are negative: pooling keeps the largest, the earliest spike; a silent neuron is −inf.
    def fire(stage: Stage, values: Tensor, skip: Tensor | None) -> Tensor:
        nonlocal potential
        if stage.window:
            membrane, shape = _integrate(stage, -values, stage.window)
            if skip is not None:
                membrane = _add_late(stage, membrane, -skip, graph.waits(stage))
            times = (stage.window + _crossing(stage, *membrane)).reshape(shape)
            potential = _read_out(stage, *membrane).reshape(shape)
        else:
            times = _encode(stage, values)
        spike_times[stage.name] = times
        return -times

    graph.run(images.to(graph.readout.weight.device).double(), fire, silent=-torch.inf)
    return EventDrivenRun(spike_times, potential)


def _encode(stage: Stage, images: Tensor) -> Tensor:
    layer = stage.layer
    if isinstance(layer, AnalogEncoder | SignedEncoder):
        weight, bias = stage.synapses()
        images = (images - layer.mean.double()) / layer.std.double()
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        potential = F.conv2d(images, weight, bias, *options)
        if isinstance(layer, SignedEncoder):
            slope = layer.neuron.psp_persistence * F.conv2d((images > 0).double(), weight, None, *options)
            return _crossing(stage, potential, slope)
        activation = potential.clamp(0, 1)
    else:
        activation = layer(images)
    return torch.where(activation > 0, 1 - activation, torch.inf)


def _integrate(stage: Stage, times: Tensor, window: int) -> tuple[tuple[Tensor, Tensor], torch.Size]:
    """Potential and slope at the firing window's start, [N, G, C, L] for L places of G groups, and the layer's shape.

    Events lie along dimension 3 of [N, G, C, K, L]; those of silent inputs and of padding come last, with weight 0.
    """
    layer, (weight, bias) = stage.weighted, stage.synapses()
    groups, shape = 1, [len(times), len(weight)]
    if isinstance(layer, WeightedConv2d):
        groups, (rows, columns) = layer.groups, layer.padding
        padded = F.pad(times, (columns, columns, rows, rows), value=torch.inf)
        for axis in (0, 1):
            span = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
            shape.append((padded.shape[2 + axis] - span) // layer.stride[axis] + 1)
        times = F.unfold(padded.clamp_max(window), layer.kernel_size, layer.dilation, 0, layer.stride)
    else:
        times = times.clamp_max(window)[:, :, None]
    times, order = times.unflatten(1, (groups, 1, -1)).sort(3)
    weight = weight.reshape(1, groups, len(weight) // groups, -1, 1)
    size = (*times.shape[:2], weight.shape[2], *times.shape[3:])
    weight = weight.expand(size).gather(3, order.expand(size))
    slope = torch.where(times < window, weight, 0.0).cumsum(3)  # behind each event
    duration = torch.cat([times[:, :, :, 1:], torch.full_like(times[:, :, :, :1], window)], 3) - times
    potential = (slope * duration).sum(3)
    if bias is not None:
        potential = potential + bias.view(groups, -1, 1)
    if isinstance(layer, Readout):
        potential = potential + layer.initial_potential
    assert isinstance(layer, DFTConv2d | DFTLinear | Readout)
    return (potential, layer.neuron.psp_persistence * slope[:, :, :, -1]), torch.Size(shape)


def _add_late(stage: Stage, membrane: tuple[Tensor, Tensor], times: Tensor, waits: int) -> tuple[Tensor, Tensor]:
    """Potential and slope with what spikes bring that wait so many windows, one a neuron: [N, C, ...] times, or inf.

    Potentials add up: each spike raises its neuron's slope from its arrival on.
    """
    weight, layer = plain_skip_weights(stage.weighted), stage.layer
    assert weight is not None
    assert isinstance(layer, DFTConv2d | DFTLinear)
    times = times.flatten(2) if times.dim() > 2 else times[:, :, None]
    late = weight.double()[:, None] * (stage.window - (times + waits)).clamp_min(0)  # 0 for silent ones
    slope = layer.neuron.psp_persistence * weight.double()[:, None] * times.isfinite()
    return membrane[0] + late.view_as(membrane[0]), membrane[1] + slope.view_as(membrane[1])


def _crossing(stage: Stage, potential: Tensor, slope: Tensor) -> Tensor:
    """Times from the window's start at which potentials meet the ramp, inf if they do not."""
    threshold, end = (stage.layer.threshold, stage.layer.window) if isinstance(stage.layer, Readout) else (1.0, 1.0)
    closing_speed = slope + threshold / end
    crossing = (threshold - potential) / torch.where(closing_speed > 0, closing_speed, torch.nan)
    inside = torch.where(crossing < end, crossing, torch.inf)  # nan is not
    return torch.where(potential >= threshold, 0.0, inside)


def _read_out(stage: Stage, potential: Tensor, slope: Tensor) -> Tensor:
    if not isinstance(stage.layer, PotentialReadout):
        return potential
    potential = potential - stage.layer.initial_potential
    return potential + slope if stage.layer.at == "end" else potential
