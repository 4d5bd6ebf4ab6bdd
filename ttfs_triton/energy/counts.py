"""Exact counts of spikes and operations over a set of images; an energy estimate multiplies them by prices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from ttfs_kernels import Neuron
from ttfs_triton.command_line import problem_lines
from ttfs_triton.nn.config import ReadoutTime
from ttfs_triton.nn.statistics import LayerStatistics, sparsity


@dataclass(frozen=True, kw_only=True)
class LayerCounts(LayerStatistics):
    """Counts of one layer: the spikes of its neurons (`LayerStatistics`) and the operations of its synapses.

    The layer whose neuron fired counts the spike; the layers whose synapses the spike reaches count its operations.
    Neurons, inputs, synapses, weights and biases are sizes of the layer; all other counts are summed over samples.

    Attributes:
        neuron: properties of the layer's neurons; None for real-valued neurons, which integrate nothing.
        inputs: number of the layer's inputs, after pooling and without padding.
        synapses: number of connections, without those into padding; a shared weight counts at every position.
        weights, biases: number of stored weights, and of stored biases.
        average: number of inputs that share a weight by averaging; an ANN would read their mean.
        spikes_delivered: spikes that reach the next layer, after pooling; 0 for a readout.
        active_inputs: non-zero inputs.
        synaptic_operations: Σ over input spikes of their true fan-out, exact at borders, stride, dilation and groups.
            If inputs are real-valued, only those that add to a slope count (`SignedEncoder`).
        nonzero_macs: the same sum over all non-zero inputs: multiplications of an ANN that skips zeros.
        analog_macs: all multiply-accumulates of a layer with real-valued inputs; 0 for spiking inputs.
        dense_macs: multiply-accumulates of the same layer in a dense ANN: synapses × samples.
        summed_spike_time: Σ over spikes of the time from the window's start, in windows.
        histogram: numbers of spikes in equal bins of time from the window's start, over the first samples; empty if
            not asked for.
        without_input: neurons of a spiking layer without an input spike and with zero initial potential. They stay
            silent here; the paper's Eq. 7, to the letter, lets them fire at their window's end.
        driven_time: Σ over neurons of the time from their first input spike to the integration window's end, in
            windows; before that spike the potential does not change. None if not counted, as for real-valued inputs.
        undriven_time: Σ over neurons without input spikes of the time in their firing window, in windows, until the
            initial potential alone makes them fire or the window ends. None if not counted.
    """

    neuron: Neuron | None
    inputs: NonNegativeInt
    synapses: NonNegativeInt
    weights: NonNegativeInt
    biases: NonNegativeInt
    active_inputs: NonNegativeInt
    synaptic_operations: NonNegativeInt
    nonzero_macs: NonNegativeInt
    analog_macs: NonNegativeInt
    dense_macs: NonNegativeInt
    spikes_delivered: NonNegativeInt = 0
    summed_spike_time: float = 0.0
    average: NonNegativeInt = 1
    histogram: tuple[NonNegativeInt, ...] = ()
    without_input: NonNegativeInt = 0
    driven_time: float | None = None
    undriven_time: float | None = None

    @property
    def psp_persistence(self) -> float:
        """σ; 0 for real-valued neurons, whose potential has no slope."""
        return 0.0 if self.neuron is None else self.neuron.psp_persistence

    @property
    def shared_weights(self) -> bool:
        """Whether several synapses share a weight, as in a convolution."""
        return self.weights * self.average < self.synapses


@dataclass(frozen=True)
class LayerActivity:
    """Work of a layer's clock-driven neurons besides synaptic operations, summed over samples, or of one sample.

    With gating, a neuron rests until its first input spike and after its spike. Without gating, it works in every
    step of its two windows.

    Attributes:
        name: the layer's name.
        integration_updates: additions of the slope to the potential in the integration window.
        firing_updates: additions of the slope to the potential in the firing window; 0 if σ = 0.
        compares: comparisons of the potential with the threshold.
    """

    name: str
    integration_updates: int | float
    firing_updates: int | float
    compares: int | float

    def awake_steps(self, neurons: int) -> float:
        """Steps in which neurons are awake, summed over neurons; the comparison at the window's start is no step."""
        return self.integration_updates + max(self.firing_updates, self.compares - neurons)


FORMAT = 3  # of `Counts.to_dict`, also in summary.json and evaluation.json

# Attributes of `LayerCounts` that are summed over samples.
OF_ALL_SAMPLES = (
    *("spikes", "spikes_delivered", "active_inputs", "synaptic_operations", "nonzero_macs", "analog_macs"),
    *("dense_macs", "saturated", "summed_spike_time"),
)
GATED = ("driven_time", "undriven_time")  # times from which the rest of gated neurons follows; both may be None
SUMMED = ("neurons", "inputs", "synapses", "weights", "biases", "silent", "never_active", *OF_ALL_SAMPLES)
"""Keys of `Counts.total()`: sums over layers."""


@dataclass(frozen=True)
class InputCounts:
    """Spikes of a latency encoder; all 0 if the first layer reads real values."""

    neurons: int = 0
    """Pixels times channels of one sample."""
    spikes: int = 0
    """Non-zero pixels, summed over all samples."""


@dataclass(frozen=True)
class Counts:
    """Counts of a network over a set of samples.

    Attributes:
        samples: number of samples counted, over all processes.
        layers: counts of the layers with synapses, in the order in which they run; the readout is last.
        input: spikes of a latency encoder, which has no synapses and is no hidden layer.
        readout: when the decision is read; None if the network has no readout.
        windows: windows that pass before the readout's window; None: one per layer that fires, as in a chain.
        weight_bits: bits of a weight on the network's grid or in its simulation; None if weights are not rounded.
        state_bits: bits of a slope or potential there; None if registers are as wide as needed.
    """

    samples: int
    layers: tuple[LayerCounts, ...]
    input: InputCounts = InputCounts()
    readout: ReadoutTime | None = None
    windows: int | None = None
    weight_bits: int | None = None
    state_bits: int | None = None

    @property
    def sparsity(self) -> float:
        """Hidden spikes over hidden neurons, before pooling, as the paper reports it; lower is sparser."""
        return sparsity(self.layers)

    @property
    def sparsity_as_published(self) -> float:
        """Spikes over neurons, counted as in the paper's published code.

        There, neurons without any input fire at their window's end, and every output neuron counts as a spike.
        """
        outputs = self.samples * sum(layer.neurons for layer in self.layers if layer.kind == "readout")
        fired = sum(layer.spikes + layer.without_input for layer in self.layers if layer.kind != "readout")
        return (fired + outputs) / (self.samples * sum(layer.neurons for layer in self.layers))

    def averages(self) -> tuple[LayerCounts, ...]:
        """The layers' counts as means over the samples instead of sums."""
        if self.samples < 1 or not self.layers:
            got = f"{self.samples} and {len(self.layers)}"
            raise ValueError(f"estimate: counts must be of at least one sample and layer; got {got}.")
        layers = []
        for layer in self.layers:
            sums = {key: getattr(layer, key) for key in (*OF_ALL_SAMPLES, *GATED)}
            means = {key: value * (1 / self.samples) for key, value in sums.items() if value is not None}
            layers.append(dataclasses.replace(layer, samples=1, **means))
        return tuple(layers)

    def firing_more(self, factor: float) -> Counts:
        """Counts if hidden neurons fired `factor` times as often, at the same times, for the same images.

        The time for which neurons wait for their first input spike is assumed to be linear in `factor`.
        """
        fired, layers = ("spikes", "spikes_delivered", "saturated", "summed_spike_time"), []
        for place, layer in enumerate(self.layers):
            changed = fired if place == 0 else (*fired, "synaptic_operations", "nonzero_macs")
            changes = {key: getattr(layer, key) * factor for key in changed}
            if place > 0 and layer.driven_time is not None and layer.undriven_time is not None:
                asleep = layer.neurons * layer.samples
                changes["driven_time"] = layer.driven_time * factor
                changes["undriven_time"] = asleep + (layer.undriven_time - asleep) * factor
            layers.append(dataclasses.replace(layer, **changes))
        return dataclasses.replace(self, layers=tuple(layers))

    def total(self) -> dict[str, Any]:
        """Sums over layers, by the names in `SUMMED`."""
        return {key: sum(getattr(layer, key) for layer in self.layers) for key in SUMMED}

    def to_dict(self) -> dict[str, Any]:
        """All counts as JSON values: the attributes, the sparsities, and "total"."""
        derived = {"format": FORMAT, "total": self.total(), "sparsity": self.sparsity}
        derived["sparsity_as_published"] = self.sparsity_as_published
        return derived | to_jsonable_python(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Counts:
        """Counts from the values that `to_dict` returned.

        Raises:
            ValueError: the format is unknown, a key is missing or a value has the wrong type.
        """
        if values.get("format") != FORMAT:
            got, remedy = values.get("format"), "Evaluate again, or install a later ttfs-triton for a later format."
            raise ValueError(f"Counts.from_dict: values must be of format {FORMAT}; got {got}. {remedy}")
        try:
            return TypeAdapter(cls).validate_python(dict(values))
        except ValidationError as error:
            problem = problem_lines(error)[0].strip()
            raise ValueError(f"Counts.from_dict: values must come from to_dict; got {problem}.") from None
