"""Energy of one sample of a network with time-to-first-spike neurons, or as an ANN.

Pooling for the earliest spike is not charged: it compares spike times that are available anyway.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ttfs_triton.energy.counts import Counts, LayerActivity, LayerCounts
from ttfs_triton.energy.estimate import Estimate, RunOptions
from ttfs_triton.energy.prices import Chip
from ttfs_triton.energy.terms import Terms


def estimate(
    counts: Counts,
    chip: Chip | str | Path,
    options: RunOptions | None = None,
    *,
    network: str = "network",
    **changes: Any,
) -> Estimate:
    """Energy of one sample, in pJ, by layer and term. The counts say which neurons and readout the network has.

    Neurons are driven by a clock, as on event chips: a synaptic operation adds a weight to a slope. An awake neuron
    adds its slope to its potential in each step of its two windows, and compares in the second. The readout integrates
    for one window.

    An analog first layer does multiply-accumulates. Memory traffic is charged, without reuse, if the chip
    prices it outside a synaptic operation; static power is charged over the latency of all windows, which parallel
    branches share.

    Args:
        counts: counts of a spiking network.
        chip: a `Chip`, or a name or path for `load_chip`.
        options: how the network runs on the chip.
        network: name of the network in tables.
        changes: attributes of `RunOptions` that override `options`: estimate(counts, "loihi", steps=32).
    Raises:
        ValueError: there are no samples, the chip is unknown, or an option does not exist or is out of range.
    Source: neuron, Wei et al., ICCV 2023, Eq. 5–7; memory traffic, Lemaire et al., ICONIP 2022.
    Example:
        >>> from ttfs_triton.energy import count
        >>> from ttfs_triton.nn import cnn1
        >>> counts = count(cnn1(), [torch.rand(4, 1, 28, 28)])
        >>> energy = estimate(counts, "lemaire45:int8", steps=32)
        >>> 0 < energy.compute_only.nominal < energy.total.nominal
        True
        >>> sorted({term.kind for term in energy.terms}), energy.status
        (['compute', 'memory', 'static'], 'assumed')
    """
    options = RunOptions(**changes) if options is None else replace(options, **changes)
    terms = Terms(counts, chip, options)
    names = [layer.name for layer in terms.layers]
    if unknown := sorted({found.name for found in options.activity or ()} - {*names}):
        raise ValueError(f"estimate: activity must be of layers {', '.join(names)}; got {', '.join(unknown)}.")
    late = counts.readout not in (None, "potential_start")  # read after the integration window
    windows = terms.windows + late
    terms.spikes_out("input", 0.0, counts.input.spikes / counts.samples)
    for layer in terms.layers:
        _clock_driven(terms, layer, windows)
        if layer.kind != "readout":
            terms.spikes_out(layer.name, layer.spikes, layer.spikes_delivered)
    said = f"clock-driven, {options.steps} steps a window, {windows} windows; {_asleep(options)}"
    return terms.estimate(network, "clock-driven", [said], steps=options.steps * windows)


def _asleep(options: RunOptions) -> str:
    """When neurons sleep, as a clause."""
    if not options.gating:
        return "neurons stay awake in both of their windows"
    bound = "" if options.activity is not None else "; their work is computed from counts: an upper bound"
    return f"neurons sleep before their first input spike and after their own{bound}"


def _clock_driven(terms: Terms, layer: LayerCounts, windows: int) -> None:
    options, work = terms.options, neuron_work(layer, terms.counts, terms.options)
    if layer.kind == "analog":  # products and biases make a potential, which waits for the threshold
        terms.multiplications(layer, layer.dense_macs)
        if layer.psp_persistence > 0:  # a signed encoder's bright pixels also add to a slope
            terms.synaptic_operations(layer, layer.synaptic_operations)
            terms.preset(replace(layer, biases=0), words=1)
    else:
        terms.synaptic_operations(layer, layer.synaptic_operations)
        terms.preset(layer, words=2)
    terms.neuron_updates(layer, work, words=1 if layer.kind == "analog" and layer.psp_persistence == 0 else 2)
    if terms.chip.arithmetic and layer.kind == "spiking" and 0 < layer.psp_persistence < 1:
        terms.compute(layer, "slope persistence", layer.neurons, "multiply_accumulate")
    if "neuron_idle" in terms.chip.prices:
        idle = max(0.0, options.steps * windows * layer.neurons - work.awake_steps(layer.neurons))
        terms.compute(layer, "idle neurons", idle, "neuron_idle")


def neuron_work(layer: LayerCounts, counts: Counts, options: RunOptions) -> LayerActivity:
    """Work of a layer's neurons in their two windows, from counts that are averages over samples.

    A neuron compares at its window's start and once a step, and adds the slope in between. With gating it sleeps before
    its first input spike, if that was counted, and after its own spike: on average one step after its spike time, half
    for rounding and half until the comparison in mid-step. `options.activity` has the exact work. An analog layer has
    no slope; a readout compares only if its first spike decides.
    """
    for found in options.activity or ():
        if found.name == layer.name:
            done = (found.integration_updates, found.firing_updates, found.compares)
            return LayerActivity(layer.name, *(number * (1 / counts.samples) for number in done))
    whole = float(options.steps * layer.neurons)
    integration = 0.0 if layer.kind == "analog" else whole
    waiting, undriven = whole, 0.0
    if options.gating:
        silent = layer.neurons - layer.spikes
        waiting = options.steps * (silent + layer.summed_spike_time) + layer.spikes
        if layer.driven_time is not None and layer.undriven_time is not None:
            integration, undriven = options.steps * layer.driven_time, options.steps * layer.undriven_time
    persists = layer.psp_persistence > 0
    if layer.kind == "readout" and counts.readout != "first_spike":
        firing = whole - undriven if counts.readout == "potential_end" and persists else 0.0
        return LayerActivity(layer.name, integration, firing, 0.0)
    return LayerActivity(layer.name, integration, waiting - undriven if persists else 0.0, waiting + layer.neurons)


def dense_ann(
    counts: Counts, chip: Chip | str | Path, *, options: RunOptions | None = None, network: str = "network"
) -> Estimate:
    """Energy of the same network as a dense ANN, which computes every product.

    Each synapse costs a multiply-accumulate, each hidden neuron a comparison (ReLU); memory traffic is charged as in an
    analog first layer. Where synapses average spikes, the ANN pools first, which costs an addition for each input.

    Args:
        counts: counts of the network, spiking or not; only its shape is used.
        chip, network: as in `estimate`.
        options: only `weight_bits`, `state_bits`, `latency_us` and `clock_mhz` have an effect.
    """
    return _ann(Terms(counts, chip, options or RunOptions(steps=1)), network, "dense ANN", skip_zeros=False)


def zero_skipping_ann(
    counts: Counts, chip: Chip | str | Path, *, options: RunOptions | None = None, network: str = "network"
) -> Estimate:
    """Energy of the same network as an ANN that multiplies non-zero inputs only.

    Each input is still read and tested for zero (a comparison); weights are read only for products that are computed.

    Args:
        counts: counts of the ANN whose zeros are skipped, or of the spiking network if the ANN is equally sparse.
        chip, options, network: as in `dense_ann`.
    """
    return _ann(Terms(counts, chip, options or RunOptions(steps=1)), network, "zero-skipping ANN", skip_zeros=True)


def _ann(terms: Terms, network: str, name: str, *, skip_zeros: bool) -> Estimate:
    for layer in terms.layers:
        if skip_zeros:
            terms.compute(layer, "tests for zero", layer.inputs, "compare")
        if layer.average > 1:
            terms.compute(layer, "average pools", layer.inputs, "accumulate")
            pooled = {key: getattr(layer, key) / layer.average for key in ("dense_macs", "inputs")}
            layer = replace(layer, **pooled)
        terms.multiplications(layer, min(layer.nonzero_macs, layer.dense_macs) if skip_zeros else layer.dense_macs)
        if layer.kind != "readout":
            terms.compute(layer, "activation functions", layer.neurons, "compare")
    return terms.estimate(network, name, [f"{name}; no reuse of numbers read"])
