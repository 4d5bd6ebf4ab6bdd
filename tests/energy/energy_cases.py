"""Counts by hand for tests of the energy model: every number can be followed on paper."""

import dataclasses

from ttfs_kernels import Neuron
from ttfs_triton.energy.counts import GATED, Counts, InputCounts, LayerCounts
from ttfs_triton.energy.estimate import Estimate
from ttfs_triton.nn.statistics import LayerKind


def layer(name: str, kind: LayerKind, *, samples: int = 1, **counts: float) -> LayerCounts:
    """Counts of one layer; those not given are 0. When neurons get their first input is not known."""
    neuron = None if kind == "analog" else Neuron()
    values = {field.name: 0 for field in dataclasses.fields(LayerCounts)} | dict.fromkeys(GATED)
    values |= {"name": name, "kind": kind, "samples": samples, "histogram": (), "neuron": neuron, "average": 1}
    return LayerCounts(**values | counts)


def dense_network() -> Counts:
    """A latency encoder of 8 pixels, 4 hidden neurons, 2 classes; two samples.

    Of the pixels 10 are not zero, of the 8 hidden neurons 3 fire: one at once, one after a quarter, one after half of
    the window.
    """
    hidden = layer(
        *("fc1", "spiking"),
        **dict(samples=2, neurons=4, inputs=8, synapses=32, weights=32, biases=4),
        **dict(spikes=3, spikes_delivered=3, active_inputs=10, synaptic_operations=40, nonzero_macs=40, dense_macs=64),
        **dict(saturated=1, summed_spike_time=0.75),
    )
    readout = layer(
        *("readout", "readout"),
        **dict(samples=2, neurons=2, inputs=4, synapses=8, weights=8, biases=2),
        **dict(spikes=2, active_inputs=3, synaptic_operations=6, nonzero_macs=6, dense_macs=16),
    )
    return Counts(2, (hidden, readout), InputCounts(neurons=8, spikes=10), "potential_start")


def convolutional_network() -> Counts:
    """An analog 3×3 convolution (1 to 4 channels, 8×8), one with spikes (4 to 8 channels, 8×8, pooled), 10 classes."""
    analog = layer(
        *("conv1", "analog"),
        **dict(neurons=256, inputs=64, synapses=1936, weights=36, biases=4, spikes=100),
        **dict(spikes_delivered=100, active_inputs=60, analog_macs=1936, nonzero_macs=1800, dense_macs=1936),
        **dict(saturated=10, summed_spike_time=45.0),
    )
    spiking = layer(
        *("conv2", "spiking"),
        **dict(neurons=512, inputs=256, synapses=15488, weights=288, biases=8, spikes=128),
        **dict(spikes_delivered=64, active_inputs=100, synaptic_operations=6000, nonzero_macs=6000, dense_macs=15488),
        **dict(saturated=8, summed_spike_time=60.0),
    )
    readout = layer(
        *("readout", "readout"),
        **dict(neurons=10, inputs=128, synapses=1280, weights=1280, biases=10, spikes=4),
        **dict(active_inputs=64, synaptic_operations=640, nonzero_macs=640, dense_macs=1280),
    )
    return Counts(1, (analog, spiking, readout), readout="potential_start")


def of_neuron(counts: Counts, psp_persistence: float) -> Counts:
    """The same counts, of another neuron."""
    neuron = Neuron(psp_persistence=psp_persistence)
    layers = (own if own.neuron is None else dataclasses.replace(own, neuron=neuron) for own in counts.layers)
    return dataclasses.replace(counts, layers=tuple(layers))


def counted(report: Estimate, layer: str | None = None) -> dict[str, float]:
    """Counts of a report by term, over all layers or of one."""
    found: dict[str, float] = {}
    for term in report.terms:
        if layer in (None, term.layer):
            found[term.name] = found.get(term.name, 0) + (term.count or 0)
    return found
