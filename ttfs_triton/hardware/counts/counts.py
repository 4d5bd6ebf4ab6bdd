"""What a network did with its inputs, as exact integers: the counts that every price is multiplied with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["analog", "spiking", "ann", "readout"]


@dataclass(frozen=True)
class LayerCounts:
    """Counts of one layer with synapses, summed over all samples unless its name says otherwise.

    What enters a layer is counted with the layer whose synapses it meets (operations), what leaves it with the layer
    whose neurons fired (spikes).

    Attributes:
        name: of the layer in the model.
        kind: "analog" (real-valued inputs, outputs are spikes), "spiking", "ann" (real-valued throughout) or "readout".
        samples: counted.
        neurons_per_sample: neurons of the layer.
        inputs_per_sample: inputs of the layer, behind pooling; padding is none.
        synapses: connections of one sample that exist, so without those into padding; a shared weight counts at each
            position.
        weights, biases: numbers to store.
        spikes: neurons that fired, or non-zero activations of an ANN; before pooling. Of a readout, whose neurons may
            not fire for a decision: those that fire in its window.
        spikes_delivered: those that reach the next layer, behind pooling; 0 for a readout.
        inputs_active: non-zero inputs.
        synaptic_operations: Σ over input spikes of their true fan-out, exact at borders, stride, dilation and groups;
            0 where inputs are real-valued.
        nonzero_macs: the same sum over non-zero inputs whatever they are: what an ANN that skips zeros multiplies.
        analog_macs: multiply-accumulates of a layer with real-valued inputs, all of them; 0 for spiking inputs.
        dense_macs: multiply-accumulates of the same layer in a dense ANN: synapses × samples.
        saturated: spikes at the window's very start.
        never_active_per_sample: neurons that fired for none of the samples (a number of neurons, not of events).
        summed_spike_time: Σ over spikes of the time from the window's start, in windows.
        histogram: spikes by time from the window's start, in equal bins over the window, of the first
            `histogram_samples` samples; empty if not asked for.
        histogram_samples: samples in `histogram`.
    """

    name: str
    kind: Kind
    samples: int
    neurons_per_sample: int
    inputs_per_sample: int
    synapses: int
    weights: int
    biases: int
    spikes: int
    spikes_delivered: int
    inputs_active: int
    synaptic_operations: int
    nonzero_macs: int
    analog_macs: int
    dense_macs: int
    saturated: int
    never_active_per_sample: int
    summed_spike_time: float
    histogram: tuple[int, ...] = ()
    histogram_samples: int = 0

    @property
    def neurons(self) -> int:
        """Neurons, summed over samples."""
        return self.neurons_per_sample * self.samples

    @property
    def silent(self) -> int:
        """Neurons, summed over samples, that did not fire."""
        return self.neurons - self.spikes

    @property
    def sparsity(self) -> float:
        """Spikes per neuron and sample; lower is sparser."""
        return self.spikes / self.neurons if self.neurons else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """All counts as JSON values, the derived ones too."""
        values = dataclasses.asdict(self) | {"neurons": self.neurons, "silent": self.silent}
        return values | {"histogram": list(self.histogram)}


# Keys of `Counts.to_dict()["total"]`: sums over layers.
SUMMED = (
    *("neurons", "neurons_per_sample", "inputs_per_sample", "synapses", "weights", "biases", "spikes"),
    *("spikes_delivered", "inputs_active", "synaptic_operations", "nonzero_macs", "analog_macs", "dense_macs"),
    *("saturated", "silent", "never_active_per_sample", "summed_spike_time"),
)


@dataclass(frozen=True)
class InputCounts:
    """Spikes of a latency encoder, summed over all samples; all 0 if the first layer reads real values.

    Attributes:
        neurons_per_sample: pixels times channels.
        spikes: pixels that are not zero.
        saturated: those at the window's start.
    """

    neurons_per_sample: int = 0
    spikes: int = 0
    saturated: int = 0


@dataclass(frozen=True)
class Counts:
    """Counts of a network over a set of samples.

    Attributes:
        samples: counted; over all processes.
        layers: those with synapses, in the order in which they run; the readout last.
        input: spikes of a latency encoder, which has no synapses and is no hidden layer.
        spikes_by_sample, synaptic_operations_by_sample: [samples] each, hidden layers and readout together; in no
            particular order if several processes counted. Empty if not asked for.
    """

    samples: int
    layers: tuple[LayerCounts, ...]
    input: InputCounts = InputCounts()
    spikes_by_sample: tuple[int, ...] = ()
    synaptic_operations_by_sample: tuple[int, ...] = ()

    @property
    def sparsity(self) -> float:
        """Hidden spikes over hidden neurons, before pooling, as the paper reports it; lower is sparser."""
        return _share([layer for layer in self.layers if layer.kind != "readout"])

    @property
    def sparsity_with_outputs(self) -> float:
        """Spikes over neurons, the readout included."""
        return _share(self.layers)

    def total(self) -> dict[str, Any]:
        """Sums over layers, by the keys of a layer."""
        return {key: sum(getattr(layer, key) for layer in self.layers) for key in SUMMED}

    def to_dict(self) -> dict[str, Any]:
        """All counts as JSON values: "samples", "layers", "total", "input" and the figures by sample."""
        return {
            "samples": self.samples,
            "sparsity": self.sparsity,
            "sparsity_with_outputs": self.sparsity_with_outputs,
            "layers": [layer.to_dict() for layer in self.layers],
            "total": self.total(),
            "input": dataclasses.asdict(self.input),
            "spikes_by_sample": list(self.spikes_by_sample),
            "synaptic_operations_by_sample": list(self.synaptic_operations_by_sample),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Counts:
        """The counts that `to_dict` gave.

        Raises:
            ValueError: a key is missing or is not known.
        """
        try:
            layers = tuple(_layer(layer) for layer in values["layers"])
            return cls(
                values["samples"],
                layers,
                InputCounts(**values["input"]),
                tuple(values["spikes_by_sample"]),
                tuple(values["synaptic_operations_by_sample"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"Counts.from_dict: values must be what to_dict gives; {error}.") from error


def _layer(values: Mapping[str, Any]) -> LayerCounts:
    given: dict[str, Any] = {key: value for key, value in values.items() if key not in ("neurons", "silent")}
    given["histogram"] = tuple(given.get("histogram", ()))
    return LayerCounts(**given)


def _share(layers: Sequence[LayerCounts]) -> float:
    neurons = sum(layer.neurons for layer in layers)
    return sum(layer.spikes for layer in layers) / neurons if neurons else float("nan")
