"""Energy of one sample of a spiking network on a chip: counts times prices, and which price matters.

Pooling for the earliest spike is not charged: it compares times that are at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttfs_triton.hardware.counts.counts import Counts, LayerCounts, ReadoutTime
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.chip_files import as_chip
from ttfs_triton.hardware.energy.layer_terms import (
    event_memory,
    multiplications,
    neuron_updates,
    neuron_work,
    preset,
    spikes_out,
    synaptic_operations,
)
from ttfs_triton.hardware.energy.prices import refuse
from ttfs_triton.hardware.energy.run_options import RunOptions
from ttfs_triton.hardware.energy.terms import Estimate, Terms


def estimate(
    counts: Counts,
    chip: Chip | str | Path,
    options: RunOptions | None = None,
    *,
    network: str = "network",
    **changes: Any,
) -> Estimate:
    """Energy of one sample, in pJ, by layer and term. Neurons and readout are those that were counted.

    *Clock-driven*, as event chips do it: a synaptic operation adds a weight to a slope; an awake neuron adds its slope
    to its potential in each step of its two windows, and compares in the second. The readout integrates for a window.

    *Closed form*: a synaptic operation is an accumulate (Σ w) and a multiply-accumulate (Σ w·x), a neuron a divide and
    two comparisons: "accumulates only" is then false. Without persistence, and in a readout that is read at its
    window's start, there is no slope: a multiply-accumulate only, no divide.

    An analog first layer is multiply-accumulates either way. Memory traffic is charged, without reuse, where the chip
    prices it outside a synaptic operation; static power over the latency, which is (layers + 1) windows.

    Args:
        counts: of a spiking network.
        chip: a `Chip`, or what `load_chip` takes.
        options: how it runs on the chip.
        network: name for tables.
        changes: attributes of `RunOptions`, in place of those of `options`: estimate(counts, "loihi", steps=32).
    Returns:
        Terms, sums, assumptions and warnings. Terms without a price are in no sum.
    Raises:
        ValueError: counts of no samples, an unknown chip, or an option that does not exist or is out of range.
    Source: neuron, Wei et al., ICCV 2023, Eq. 5–7; memory traffic, Lemaire et al., ICONIP 2022.
    Example:
        >>> from ttfs_triton.hardware import count
        >>> from ttfs_triton.nn import cnn1
        >>> counts = count(cnn1(), [torch.rand(4, 1, 28, 28)])
        >>> energy = estimate(counts, "lemaire45:int8", steps=32)
        >>> 0 < energy.compute_only.nominal < energy.total.nominal
        True
        >>> sorted({term.kind for term in energy.terms}), energy.status
        (['compute', 'memory', 'static'], 'assumed')
    """
    chip, options = as_chip(chip), RunOptions(**changes) if options is None else replace(options, **changes)
    layers, terms = counts.averages(), Terms(chip, options, counts)
    unknown = sorted({found.name for found in options.activity or ()} - {layer.name for layer in layers})
    if unknown:
        names = ", ".join(layer.name for layer in layers)
        refuse("estimate", "activity", f"be of layers {names}", ", ".join(unknown))
    late = counts.readout not in (None, "potential_start")  # read behind the window of integration
    windows = sum(layer.kind == "spiking" for layer in layers) + 1 + late
    clocked = options.implementation == "clock_driven"
    spikes_out(terms, "input", 0.0, counts.input.spikes / counts.samples)
    for layer in layers:
        if clocked:
            _clock_driven(terms, layer, counts, windows)
        else:
            _closed_form(terms, layer, counts.readout)
        if layer.kind != "readout":
            spikes_out(terms, layer.name, layer.spikes, layer.spikes_delivered)
    latency_us = options.latency_us
    if latency_us is None and clocked and options.steps is not None:
        latency_us = terms.step_time(options.steps * windows)
    terms.static_power(latency_us, "step_us" if clocked else "latency_us")
    lines = ["closed form: multiplications and divisions, not accumulates only"]
    if clocked:
        lines = [f"clock-driven, {options.steps} steps a window; {_asleep(layers, options)}"]
    if latency_us is not None:
        lines.append(f"latency {latency_us:,.4g} µs ({windows} windows)")
    return terms.estimate(network, options.implementation.replace("_", "-"), latency_us, lines)


def _asleep(layers: Sequence[LayerCounts], options: RunOptions) -> str:
    """When neurons do not work, in words."""
    if not options.gating:
        return "neurons stay awake in both of their windows"
    if options.activity is None and any(layer.driven_time is None for layer in layers if layer.kind != "analog"):
        return "neurons sleep behind their own spike; their first input was not counted: an upper bound"
    return "neurons sleep before their first input spike and behind their own"


def _clock_driven(terms: Terms, layer: LayerCounts, counts: Counts, windows: int) -> None:
    options = terms.options
    work = neuron_work(layer, counts.readout, options, counts.samples)
    if layer.kind == "analog":  # a potential without a slope waits for the threshold
        multiplications(terms, layer, layer.dense_macs)
    if layer.kind != "analog" or layer.synaptic_operations:
        synaptic_operations(terms, layer, layer.synaptic_operations)
        preset(terms, layer, words=2)
    neuron_updates(terms, layer, work)
    if terms.chip.arithmetic and layer.kind == "spiking" and 0 < layer.psp_persistence < 1:
        terms.charge(layer.name, "slope persistence", "compute", layer.neurons, "multiply_accumulate")
    if options.idle and "neuron_idle" in terms.chip.prices:
        assert options.steps is not None
        idle = max(0.0, options.steps * windows * layer.neurons - work.steps)
        terms.charge(layer.name, "idle neurons", "compute", idle, "neuron_idle")


def _closed_form(terms: Terms, layer: LayerCounts, readout: ReadoutTime | None) -> None:
    name, neurons, operations = layer.name, layer.neurons, layer.synaptic_operations
    if layer.kind == "analog":
        multiplications(terms, layer, layer.dense_macs)
        terms.charge(name, "threshold comparisons", "compute", 2 * neurons, "compare")
        if layer.psp_persistence > 0:  # pixels with a slope
            terms.charge(name, "synaptic operations, Σ w", "compute", operations, "accumulate")
            terms.charge(name, "divisions", "compute", neurons, "divide")
        return
    fires = layer.kind != "readout" or readout == "first_spike"
    slope = layer.psp_persistence > 0 and (fires or readout == "potential_end")
    terms.charge(name, "synaptic operations, Σ w·x", "compute", operations, "multiply_accumulate")
    if slope:
        terms.charge(name, "synaptic operations, Σ w", "compute", operations, "accumulate")
    if fires and slope:
        terms.charge(name, "divisions", "compute", neurons, "divide")
    if fires:
        terms.charge(name, "threshold comparisons", "compute", 2 * neurons, "compare")
    words = 1 + slope
    event_memory(terms, layer, operations, words)
    preset(terms, layer, words)
    terms.access(name, "state reads", neurons * words, neurons * words, terms.state_bits)


@dataclass(frozen=True)
class Swing:
    """What one price does to the total. All energies are pJ.

    Attributes:
        price_name: key of `PRICES`, or "memory" for all its accesses together.
        low, high: the total with this price at its low and high end, all others nominal.
        nominal: the total.
    """

    price_name: str
    low: float
    nominal: float
    high: float

    @property
    def width(self) -> float:
        """How far the total moves."""
        return self.high - self.low


def sensitivity(energy: Estimate, *, spread: float = 0.0) -> tuple[Swing, ...]:
    """One swing a price, the widest first; prices that move nothing are left out.

    Args:
        energy: of any network.
        spread: relative range given to prices for which sources state none: 0.2 is ±20 %.
    Returns:
        Swings around its total; empty if nothing has a price.
    Raises:
        ValueError: spread outside [0, 1].
    """
    if not 0 <= spread <= 1:
        raise ValueError(f"sensitivity: spread must be in [0, 1]; got {spread}. 0.2 is ±20 %.")
    total = energy.total
    if total is None:
        return ()
    swings = []
    for name, own in energy.by_price().items():
        if own is None:
            continue
        low, high = own.low, own.high
        if low == high:
            low, high = own.nominal * (1 - spread), own.nominal * (1 + spread)
        if high > low:
            nominal = total.nominal
            swings.append(Swing(name, nominal - own.nominal + low, nominal, nominal - own.nominal + high))
    return tuple(sorted(swings, key=lambda swing: -swing.width))
