"""Energy of one sample of a spiking network on a chip: counts times prices, and which price matters.

Pooling for the earliest spike is not charged: it compares times that are at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttfs_triton.hardware.counts.counts import Counts
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.chip_files import as_chip
from ttfs_triton.hardware.energy.ledger import Estimate, Ledger
from ttfs_triton.hardware.energy.operations import (
    LayerAverages,
    averages,
    event_memory,
    multiplications,
    neuron_updates,
    neuron_work,
    preset,
    spikes_out,
    synaptic_operations,
)
from ttfs_triton.hardware.energy.power import latency, static_power
from ttfs_triton.hardware.energy.run_options import RunOptions


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
        TypeError: a change that `RunOptions` does not have.
        ValueError: counts of an ANN or of no samples, an unknown chip, or an option out of range.
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
    options = RunOptions(**changes) if options is None else replace(options, **changes)
    layers = averages("estimate", counts)
    if any(layer.kind == "ann" for layer in layers):
        _refuse("counts", "be of a spiking network", "analog layers", "Use dense_ann or zero_skipping_ann.")
    unknown = sorted({found.name for found in options.activity or ()} - {layer.name for layer in layers})
    if unknown:
        _refuse("activity", f"be of layers {', '.join(layer.name for layer in layers)}", ", ".join(unknown))
    return spiking_estimate(
        network, layers, counts.input.spikes / counts.samples, as_chip(chip), options, counts.samples
    )


def spiking_estimate(
    network: str, layers: Sequence[LayerAverages], input_spikes: float, chip: Chip, options: RunOptions, samples: int
) -> Estimate:
    """What `estimate` gives, from averages over samples."""
    ledger = Ledger.of(chip, options)
    late = layers[-1].readout not in (None, "potential_start")  # read behind the window of integration
    windows = sum(layer.kind == "spiking" for layer in layers) + 1 + late
    spikes_out(ledger, "input", 0.0, input_spikes, options)
    for layer in layers:
        if options.implementation == "clock_driven":
            _clock_driven(ledger, layer, options, windows, samples)
        else:
            _closed_form(ledger, layer)
        if layer.kind != "readout":
            spikes_out(ledger, layer.name, layer.spikes, layer.delivered, options)
    latency_us = latency(chip, options, windows)
    remedy = "step_us" if options.implementation == "clock_driven" else "latency_us"
    static_power(ledger, latency_us, options.clock_mhz, remedy)
    return Estimate(
        network=network,
        implementation=options.implementation.replace("_", "-"),
        chip=chip,
        samples=samples,
        terms=tuple(ledger.terms),
        assumptions=(*_assumptions(options, windows, latency_us), *about(ledger)),
        warnings=outgrown(ledger, layers),
        latency_us=latency_us,
    )


def _clock_driven(ledger: Ledger, layer: LayerAverages, options: RunOptions, windows: int, samples: int) -> None:
    work = neuron_work(layer, options, samples)
    if layer.kind == "analog":  # a potential without a slope waits for the threshold
        multiplications(ledger, layer, layer.dense_macs)
    if layer.kind != "analog" or layer.synaptic_operations:
        synaptic_operations(ledger, layer)
        preset(ledger, layer, words=2)
    neuron_updates(ledger, layer, work)
    if ledger.chip.arithmetic and layer.kind == "spiking" and 0 < layer.psp_persistence < 1:
        ledger.charge(layer.name, "slope persistence", "compute", layer.neurons, "multiply_accumulate")
    if options.idle and "neuron_idle" in ledger.chip.prices:
        assert options.steps is not None
        idle = max(0.0, options.steps * windows * layer.neurons - work.steps)
        ledger.charge(layer.name, "idle neurons", "compute", idle, "neuron_idle")


def _closed_form(ledger: Ledger, layer: LayerAverages) -> None:
    name, neurons = layer.name, layer.neurons
    if layer.kind == "analog":
        multiplications(ledger, layer, layer.dense_macs)
        ledger.charge(name, "threshold comparisons", "compute", 2 * neurons, "compare")
        if layer.psp_persistence > 0:  # pixels with a slope
            ledger.charge(name, "synaptic operations, Σ w", "compute", layer.synaptic_operations, "accumulate")
            ledger.charge(name, "divisions", "compute", neurons, "divide")
        return
    fires = layer.kind != "readout" or layer.readout == "first_spike"
    slope = layer.psp_persistence > 0 and (fires or layer.readout == "potential_end")
    ledger.charge(name, "synaptic operations, Σ w·x", "compute", layer.synaptic_operations, "multiply_accumulate")
    if slope:
        ledger.charge(name, "synaptic operations, Σ w", "compute", layer.synaptic_operations, "accumulate")
    if fires and slope:
        ledger.charge(name, "divisions", "compute", neurons, "divide")
    if fires:
        ledger.charge(name, "threshold comparisons", "compute", 2 * neurons, "compare")
    words = 1 + slope
    event_memory(ledger, layer, layer.synaptic_operations, words)
    preset(ledger, layer, words)
    ledger.access(name, "state reads", neurons * words, neurons * words, ledger.state_bits)


def about(ledger: Ledger) -> list[str]:
    """What holds for every estimate on this chip, in sentences."""
    chip = ledger.chip
    lines = [f"{chip.name}: {chip.description}; a synaptic operation is priced as {chip.synop_scope}"]
    if not ledger.memory:
        lines.append("memory traffic is left out")
    elif chip.holds("memory"):
        lines.append("memory traffic is inside the price of a synaptic operation: compute alone cannot be told apart")
    elif chip.memory is not None:
        packing = "numbers packed into words" if chip.memory.packed else "one access a number"
        lines.append(
            f"memory of each layer: {ledger.weight_bits}-bit weights, {ledger.state_bits}-bit states, {packing}"
        )
    return [*lines, *chip.notes]


def outgrown(ledger: Ledger, layers: Sequence[LayerAverages]) -> tuple[str, ...]:
    """Where the network does not fit, in sentences."""
    chip, capacity, lines = ledger.chip, ledger.chip.capacity, []
    for name in ("neurons", "synapses"):
        there, needed = getattr(capacity, name), sum(getattr(layer, name) for layer in layers)
        if there is not None and needed > there:
            chips = f"at least {-(-needed // there):,} chips; static power is of one"
            lines.append(f"{needed:,} {name} exceed the {there:,} of one {chip.name}: {chips}")
    if capacity.weight_bits is not None and ledger.weight_bits > capacity.weight_bits:
        lines.append(f"weights of {ledger.weight_bits} bits exceed the {capacity.weight_bits} bits of {chip.name}")
    for layer, size in ledger.outgrown.items():
        assert chip.memory is not None
        largest = chip.memory.points[-1][0]
        priced = f"the largest memory that {chip.name} prices ({largest / 2**20:g} MB)"
        lines.append(f"{layer}: {size / 2**20:,.1f} MB exceed {priced}")
    return tuple(lines)


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


def _assumptions(options: RunOptions, windows: int, latency_us: float | None) -> list[str]:
    if options.implementation == "closed_form":
        lines = ["closed form: multiplications and divisions, not accumulates only"]
    else:
        after = "sleep" if options.gating else "stay awake"
        lines = [
            f"clock-driven, {options.steps} steps a window; neurons that have fired {after} until their window ends"
        ]
    if latency_us is not None:
        lines.append(f"latency {latency_us:,.4g} µs ({windows} windows)")
    return lines


def _refuse(name: str, rule: str, value: object, remedy: str = "") -> None:
    raise ValueError(f"estimate: {name} must {rule}; got {value}. {remedy}".rstrip())
