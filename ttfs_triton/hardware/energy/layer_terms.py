"""The terms of one layer: what each way of computing it does for a sample. Layers are those of `Counts.averages`."""

from __future__ import annotations

from dataclasses import dataclass

from ttfs_triton.hardware.counts.counts import LayerCounts, ReadoutTime
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.run_options import RunOptions
from ttfs_triton.hardware.energy.terms import Terms


def synaptic_operations(terms: Terms, layer: LayerCounts, operations: float) -> None:
    """Spikes arrive: each adds a weight to the slope of each neuron behind it."""
    terms.charge(layer.name, "synaptic operations", "compute", operations, synop_price(terms.chip, layer))
    event_memory(terms, layer, operations, words=1)


def synop_price(chip: Chip, layer: LayerCounts) -> str:
    """Which price a synaptic operation of this layer has."""
    if chip.arithmetic:
        return "accumulate"
    return "synop_conv" if layer.shared_weights and "synop_conv" in chip.prices else "synop"


def event_memory(terms: Terms, layer: LayerCounts, operations: float, words: int) -> None:
    """Memory traffic of synaptic operations: a weight each, and `words` states read and written (Lemaire, Eq. 7–15)."""
    terms.access(layer.name, "weight reads", operations, layer.weights, terms.weight_bits)
    states = layer.neurons * words
    terms.access(layer.name, "state reads", operations * words, states, terms.state_bits)
    terms.access(layer.name, "state writes", operations * words, states, terms.state_bits)
    terms.addresses(layer.name, operations)


def preset(terms: Terms, layer: LayerCounts, words: int) -> None:
    """Before a sample: potentials are set to their biases, slopes to zero."""
    if layer.biases:
        terms.access(layer.name, "weight reads", layer.neurons, layer.biases, terms.state_bits)
    terms.access(layer.name, "state writes", layer.neurons * words, layer.neurons * words, terms.state_bits)


def multiplications(terms: Terms, layer: LayerCounts, macs: float) -> None:
    """A layer of real-valued inputs, without reuse: weight and input are read for each product, sums stay in registers.

    An input of a fully connected layer is read once (Lemaire, Eq. 3–6, 11–12).
    """
    terms.charge(layer.name, "multiply-accumulates", "compute", macs, "multiply_accumulate")
    reads = macs + (layer.neurons if layer.biases else 0)
    terms.access(layer.name, "weight reads", reads, layer.weights, terms.weight_bits)
    inputs = layer.dense_macs if layer.shared_weights else layer.inputs
    terms.access(layer.name, "input reads", inputs, layer.inputs, terms.state_bits)
    terms.access(layer.name, "output writes", layer.neurons, layer.neurons, terms.state_bits)
    terms.addresses(layer.name, layer.inputs + layer.neurons + layer.weights)


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


def neuron_work(layer: LayerCounts, readout: ReadoutTime | None, options: RunOptions, samples: int) -> NeuronWork:
    """Work of a layer in its two windows; an analog layer has no slope, a readout compares only if it is to fire.

    A neuron compares at its window's start and once a step, with the slope added in between. With gating it sleeps
    before its first input spike, if that was counted, and once it has fired, which is where its time is rounded to:
    half a step later on average, and half a step more to the middle of the step in which it is compared.
    `options.activity` has this exactly.
    """
    assert options.steps is not None
    for found in options.activity or ():
        if found.name == layer.name:
            steps = found.integration_updates + max(found.firing_updates, found.compares - layer.neurons * samples)
            done = (found.integration_updates, found.firing_updates, found.compares, steps)
            return NeuronWork(*(count * (1 / samples) for count in done))
    whole = float(options.steps * layer.neurons)
    integration = 0.0 if layer.kind == "analog" else whole
    waiting, undriven = whole, 0.0
    if options.gating:
        silent = layer.neurons - layer.spikes
        waiting = options.steps * (silent + layer.summed_spike_time) + layer.spikes - layer.saturated
        if layer.driven_time is not None and layer.undriven_time is not None:
            integration, undriven = options.steps * layer.driven_time, options.steps * layer.undriven_time
    if layer.kind == "readout" and readout != "first_spike":
        firing = whole - undriven if readout == "potential_end" and layer.psp_persistence > 0 else 0.0
        return NeuronWork(integration, firing, 0.0, integration + firing)
    firing = waiting - undriven if layer.psp_persistence > 0 else 0.0
    return NeuronWork(integration, firing, waiting + layer.neurons, integration + waiting)


def neuron_updates(terms: Terms, layer: LayerCounts, work: NeuronWork, words: int = 2) -> None:
    """Charge that work; `words` is 1 for neurons whose addend is no state."""
    additions = work.integration + work.firing
    if terms.chip.arithmetic:
        terms.charge(layer.name, "neuron additions", "compute", additions, "accumulate")
        terms.charge(layer.name, "threshold comparisons", "compute", work.compares, "compare")
    else:
        terms.charge(layer.name, "neuron updates", "compute", work.steps, "neuron_update")
    # An addition reads both words; in the window of firing it shares its read of the potential with the comparison.
    slopes = (words - 1) * additions
    potentials = work.integration + max(work.firing, work.compares)
    terms.access(layer.name, "state reads", slopes + potentials, words * layer.neurons, terms.state_bits)
    terms.access(layer.name, "state writes", additions, words * layer.neurons, terms.state_bits)


def spikes_out(terms: Terms, layer: str, spikes: float, delivered: float) -> None:
    """Spikes leave a layer, where the chip prices that."""
    prices, hops = terms.chip.prices, terms.options.hops_per_spike
    if "spike_out" in prices:
        terms.charge(layer, "spikes out", "communication", spikes, "spike_out")
    if "message" in prices:
        terms.charge(layer, "messages", "communication", delivered * terms.options.messages_per_spike, "message")
    if "hop" in prices:
        note = "" if hops is not None else "hops a spike depend on the placement: give hops_per_spike"
        terms.charge(layer, "hops", "communication", None if hops is None else delivered * hops, "hop", note)
