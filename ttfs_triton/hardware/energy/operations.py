"""What each way of computing a layer does, for one sample, and the terms that this makes on a chip."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ttfs_triton.hardware.counts.counts import Counts, LayerCounts, ReadoutTime
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.ledger import Ledger
from ttfs_triton.hardware.energy.run_options import RunOptions
from ttfs_triton.nn.statistics import LayerKind


@dataclass(frozen=True)
class LayerAverages:
    """Counts of one layer, of one sample on average.

    Attributes:
        name, kind: as in `LayerCounts`.
        psp_persistence: σ; 0 for real-valued neurons, whose potential has no slope.
        readout: when it is read, of a readout.
        first: whether its inputs are the network's, so that they do not depend on how much hidden neurons fire.
        shared_weights: a convolution's.
        neurons, inputs, synapses, weights, biases: of the layer.
        spikes, delivered, saturated: as in `LayerCounts`.
        synaptic_operations: input spikes times their fan-out.
        dense_macs, nonzero_macs: as in `LayerCounts`.
        spike_time: Σ over spikes of the time from the window's start, in windows.
    """

    name: str
    kind: LayerKind
    psp_persistence: float
    readout: ReadoutTime | None
    first: bool
    shared_weights: bool
    neurons: int
    inputs: int
    synapses: int
    weights: int
    biases: int
    spikes: float
    delivered: float
    saturated: float
    synaptic_operations: float
    dense_macs: float
    nonzero_macs: float
    spike_time: float

    @classmethod
    def of(cls, layer: LayerCounts, readout: ReadoutTime | None, first: bool) -> LayerAverages:
        """Averages over the samples of a layer."""
        each = 1 / layer.samples
        return cls(
            name=layer.name,
            kind=layer.kind,
            psp_persistence=0.0 if layer.neuron is None else layer.neuron.psp_persistence,
            readout=readout if layer.kind == "readout" else None,
            first=first,
            shared_weights=layer.weights < layer.synapses,
            neurons=layer.neurons,
            inputs=layer.inputs,
            synapses=layer.synapses,
            weights=layer.weights,
            biases=layer.biases,
            spikes=layer.spikes * each,
            delivered=layer.spikes_delivered * each,
            saturated=layer.saturated * each,
            synaptic_operations=layer.synaptic_operations * each,
            dense_macs=layer.dense_macs * each,
            nonzero_macs=layer.nonzero_macs * each,
            spike_time=layer.summed_spike_time * each,
        )

    def fired_more(self, factor: float) -> LayerAverages:
        """The same layer if hidden neurons fired `factor` times as often, at the same times."""
        arriving = 1.0 if self.first else factor
        return replace(
            self,
            spikes=self.spikes * factor,
            delivered=self.delivered * factor,
            saturated=self.saturated * factor,
            spike_time=self.spike_time * factor,
            synaptic_operations=self.synaptic_operations * arriving,
            nonzero_macs=self.nonzero_macs * arriving,
        )


def averages(function: str, counts: Counts) -> tuple[LayerAverages, ...]:
    """Averages over samples, layer by layer.

    Raises:
        ValueError: nothing was counted, said in the name of a function.
    """
    if counts.samples < 1 or not counts.layers:
        raise ValueError(
            f"{function}: counts must be of at least one sample and layer; got {counts.samples} and "
            f"{len(counts.layers)}."
        )
    return tuple(LayerAverages.of(layer, counts.readout, place == 0) for place, layer in enumerate(counts.layers))


def synaptic_operations(ledger: Ledger, layer: LayerAverages) -> None:
    """Spikes arrive: each adds a weight to the slope of each neuron behind it."""
    ledger.charge(
        layer.name, "synaptic operations", "compute", layer.synaptic_operations, synop_price(ledger.chip, layer)
    )
    event_memory(ledger, layer, layer.synaptic_operations, words=1)


def synop_price(chip: Chip, layer: LayerAverages) -> str:
    """Which price a synaptic operation of this layer has."""
    if chip.arithmetic:
        return "accumulate"
    return "synop_conv" if layer.shared_weights and "synop_conv" in chip.prices else "synop"


def event_memory(ledger: Ledger, layer: LayerAverages, operations: float, words: int) -> None:
    """Memory traffic of synaptic operations: a weight each, and `words` states read and written (Lemaire, Eq. 7–15)."""
    ledger.access(layer.name, "weight reads", operations, layer.weights, ledger.weight_bits)
    states = layer.neurons * words
    ledger.access(layer.name, "state reads", operations * words, states, ledger.state_bits)
    ledger.access(layer.name, "state writes", operations * words, states, ledger.state_bits)
    ledger.addresses(layer.name, operations)


def preset(ledger: Ledger, layer: LayerAverages, words: int) -> None:
    """Before a sample: potentials are set to their biases, slopes to zero."""
    if layer.biases:
        ledger.access(layer.name, "weight reads", layer.neurons, layer.biases, ledger.state_bits)
    ledger.access(layer.name, "state writes", layer.neurons * words, layer.neurons * words, ledger.state_bits)


def multiplications(ledger: Ledger, layer: LayerAverages, macs: float) -> None:
    """A layer of real-valued inputs, without reuse: weight and input are read for each product, sums stay in registers.

    An input of a fully connected layer is read once (Lemaire, Eq. 3–6, 11–12).
    """
    ledger.charge(layer.name, "multiply-accumulates", "compute", macs, "multiply_accumulate")
    ledger.access(
        layer.name, "weight reads", macs + (layer.neurons if layer.biases else 0), layer.weights, ledger.weight_bits
    )
    inputs = layer.dense_macs if layer.shared_weights else layer.inputs
    ledger.access(layer.name, "input reads", inputs, layer.inputs, ledger.state_bits)
    ledger.access(layer.name, "output writes", layer.neurons, layer.neurons, ledger.state_bits)
    ledger.addresses(layer.name, layer.inputs + layer.neurons + layer.weights)


@dataclass(frozen=True)
class NeuronWork:
    """What the clock-driven neurons of a layer do besides synaptic operations, a sample.

    Attributes:
        integration: additions of the slope to the potential, in the window of integration.
        firing: the same in the window of firing.
        compares: with the threshold, in the window of firing.
        steps: neuron-steps awake, in both.
    """

    integration: float
    firing: float
    compares: float
    steps: float


def neuron_work(layer: LayerAverages, options: RunOptions, samples: int) -> NeuronWork:
    """Work of a layer in its two windows; an analog layer has no slope, a readout compares only if it is to fire.

    A neuron compares at its window's start and once a step, with the slope added in between. With gating it sleeps
    once it has fired, which is where its time is rounded to: half a step later on average, and half a step more to the
    middle of the step in which it is compared. `options.activity` has this exactly.
    """
    assert options.steps is not None
    for found in options.activity or ():
        if found.name == layer.name:
            each = 1 / samples
            steps = found.integration_updates + max(found.firing_updates, found.compares - layer.neurons * samples)
            done = (found.integration_updates, found.firing_updates, found.compares, steps)
            return NeuronWork(*(count * each for count in done))
    whole = float(options.steps * layer.neurons)
    integration = 0.0 if layer.kind == "analog" else whole
    if layer.kind == "readout" and layer.readout != "first_spike":
        firing = whole if layer.readout == "potential_end" else 0.0
        return NeuronWork(integration, firing, 0.0, integration + firing)
    waiting = whole
    if options.gating:
        silent = layer.neurons - layer.spikes
        waiting = options.steps * (silent + layer.spike_time) + layer.spikes - layer.saturated
    return NeuronWork(
        integration, waiting if layer.psp_persistence > 0 else 0.0, waiting + layer.neurons, integration + waiting
    )


def neuron_updates(ledger: Ledger, layer: LayerAverages, work: NeuronWork, words: int = 2) -> None:
    """Charge that work; `words` is 1 for neurons whose addend is no state."""
    additions = work.integration + work.firing
    if ledger.chip.arithmetic:
        ledger.charge(layer.name, "neuron additions", "compute", additions, "accumulate")
        ledger.charge(layer.name, "threshold comparisons", "compute", work.compares, "compare")
    else:
        ledger.charge(layer.name, "neuron updates", "compute", work.steps, "neuron_update")
    # An addition reads both words; in the window of firing it shares its read of the potential with the comparison.
    slopes = (words - 1) * additions
    potentials = work.integration + max(work.firing, work.compares)
    ledger.access(layer.name, "state reads", slopes + potentials, words * layer.neurons, ledger.state_bits)
    ledger.access(layer.name, "state writes", additions, words * layer.neurons, ledger.state_bits)


def spikes_out(ledger: Ledger, layer: str, spikes: float, delivered: float, options: RunOptions) -> None:
    """Spikes leave a layer, where the chip prices that."""
    prices, hops = ledger.chip.prices, options.hops_per_spike
    if "spike_out" in prices:
        ledger.charge(layer, "spikes out", "communication", spikes, "spike_out")
    if "message" in prices:
        ledger.charge(layer, "messages", "communication", delivered * options.messages_per_spike, "message")
    if "hop" in prices:
        note = "" if hops is not None else "hops a spike depend on the placement: give hops_per_spike"
        ledger.charge(layer, "hops", "communication", None if hops is None else delivered * hops, "hop", note)
