"""The same network computed otherwise: as an ANN, dense or skipping zeros, or with rate-coded spikes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ttfs_triton.hardware.counts.counts import Counts
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.chip_files import as_chip
from ttfs_triton.hardware.energy.layer_terms import (
    NeuronWork,
    multiplications,
    neuron_updates,
    spikes_out,
    synaptic_operations,
)
from ttfs_triton.hardware.energy.run_options import RunOptions
from ttfs_triton.hardware.energy.terms import Estimate, Terms


@dataclass(frozen=True)
class RateCode:
    """A rate-coded network of the same shape.

    Attributes:
        steps: T, time steps a sample.
        rate: spikes a neuron and step, the same for all, inputs of a latency encoder included; or None if measured.
        synaptic_operations, spikes: measured, a sample, by layer.
    Raises:
        ValueError: no steps, a rate outside [0, 1], or not exactly one of rate and measured figures.
    """

    steps: int
    rate: float | None = None
    synaptic_operations: Mapping[str, float] | None = None
    spikes: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"RateCode: steps must be at least 1; got {self.steps}.")
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise ValueError(f"RateCode: rate must be in [0, 1]; got {self.rate}. It is a spike rate a step.")
        measured = (self.synaptic_operations is not None, self.spikes is not None)
        if measured not in ((True, True), (False, False)) or measured[0] == (self.rate is not None):
            raise ValueError(
                f"RateCode: rate must be given, or else synaptic_operations and spikes; got rate {self.rate}, "
                f"synaptic_operations {'given' if measured[0] else None}, spikes {'given' if measured[1] else None}."
            )


def dense_ann(
    counts: Counts, chip: Chip | str | Path, *, options: RunOptions | None = None, network: str = "network"
) -> Estimate:
    """The same network as an ANN that computes every product.

    A multiply-accumulate a synapse, a comparison a hidden neuron (ReLU); memory traffic as for an analog first layer.

    Args:
        counts: of the network, spiking or not: only its shape is used.
        chip: a `Chip`, or what `load_chip` takes; one with a price of a multiply-accumulate.
        options: of these, `weight_bits`, `state_bits`, `memory`, `latency_us` and `clock_mhz` matter.
        network: name for tables.
    Raises:
        ValueError: counts of no samples, or an unknown chip.
    """
    return _ann(counts, chip, options, network, skip_zeros=False)


def zero_skipping_ann(
    counts: Counts, chip: Chip | str | Path, *, options: RunOptions | None = None, network: str = "network"
) -> Estimate:
    """The same as an ANN that multiplies non-zero inputs only.

    Each input is still read and tested for zero (a comparison); weights are read for products that are computed.

    Args:
        counts: of the ANN whose zeros are skipped, or of the spiking network if its twin is as sparse.
        chip, options, network: as for `dense_ann`.
    Raises:
        ValueError: counts of no samples, or an unknown chip.
    """
    return _ann(counts, chip, options, network, skip_zeros=True)


def rate_coded(
    counts: Counts,
    chip: Chip | str | Path,
    code: RateCode,
    *,
    options: RunOptions | None = None,
    network: str = "network",
) -> Estimate:
    """The same network of integrate-and-fire neurons that fire at a rate.

    A synaptic operation adds a weight to a potential. Every neuron is awake in all T steps: it adds its bias (or the
    current of an analog first layer, whose products are computed once) and compares. Layers follow each other by one
    step. With a rate in place of measured figures, synaptic operations are T · rate · synapses.

    Args:
        counts: of the network: only its shape is used.
        chip: a `Chip`, or what `load_chip` takes.
        code: time steps, and a rate or measured figures.
        options: of these, all but those of windows matter.
        network: name for tables.
    Raises:
        ValueError: counts of no samples, an unknown chip, or measured figures that lack a layer.
    """
    layers, terms = counts.averages(), Terms(as_chip(chip), options or RunOptions(steps=1), counts)
    real = {layer.name for layer in layers[:1] if layer.kind == "analog"}
    _require_layers(code, {layer.name for layer in layers} - real, {layer.name for layer in layers[:-1]})
    rate = code.steps * (code.rate or 0.0)
    spikes_out(terms, "input", 0.0, 0.0 if real else rate * layers[0].inputs)
    for layer, after in zip(layers, (*layers[1:], None), strict=True):
        if layer.name in real:
            multiplications(terms, layer, layer.dense_macs)
        else:
            operations = (code.synaptic_operations or {}).get(layer.name, rate * layer.synapses)
            synaptic_operations(terms, layer, operations)
        updates = float(code.steps * layer.neurons)
        neuron_updates(terms, layer, NeuronWork(0.0, updates, updates, updates), words=1)
        if after is not None:
            spikes = (code.spikes or {}).get(layer.name, rate * layer.neurons)
            spikes_out(terms, layer.name, spikes, rate * after.inputs if code.spikes is None else spikes)
    latency_us = terms.step_time(code.steps + len(layers) - 1)
    terms.static_power(latency_us)
    name, how = f"rate-coded, T = {code.steps}", "measured rates"
    if code.rate is not None:
        name, how = f"{name}, {code.rate:g}", f"rate {code.rate:g} a step"
    return terms.estimate(network, name, latency_us, [f"rate-coded, {code.steps} steps, {how}"])


def _require_layers(code: RateCode, with_operations: set[str], with_spikes: set[str]) -> None:
    """Measured figures must not leave out a layer."""
    for name, wanted in (("synaptic_operations", with_operations), ("spikes", with_spikes)):
        given = getattr(code, name)
        missing = sorted(wanted - set(given or ()))
        if given is not None and missing:
            raise ValueError(
                f"rate_coded: {name} must have every layer; got none for {', '.join(missing)}. Measure them too."
            )


def _ann(
    counts: Counts, chip: Chip | str | Path, options: RunOptions | None, network: str, *, skip_zeros: bool
) -> Estimate:
    terms = Terms(as_chip(chip), options or RunOptions(steps=1), counts)
    for layer in counts.averages():
        if skip_zeros:
            terms.charge(layer.name, "tests for zero", "compute", layer.inputs, "compare")
        multiplications(terms, layer, layer.nonzero_macs if skip_zeros else layer.dense_macs)
        if layer.kind != "readout":
            terms.charge(layer.name, "activation functions", "compute", layer.neurons, "compare")
    latency_us = terms.options.latency_us
    terms.static_power(latency_us, remedy="latency_us")
    name = "zero-skipping ANN" if skip_zeros else "dense ANN"
    return terms.estimate(network, name, latency_us, [f"{name}; no reuse of what was read"])
