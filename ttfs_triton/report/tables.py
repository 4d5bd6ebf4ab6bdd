"""Tables of a report, as text and bars, ready to be laid out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ttfs_triton.hardware.counts.counts import Counts, LayerCounts
from ttfs_triton.hardware.energy.compare import Comparison
from ttfs_triton.hardware.energy.prices import Range, Status, weakest
from ttfs_triton.hardware.energy.report import Report
from ttfs_triton.hardware.simulation.simulation import Simulation
from ttfs_triton.hardware.simulation.sweep import Sweep, SweepRow, bits_label
from ttfs_triton.report.energy_tables import format_energy, format_range
from ttfs_triton.wording import number, percent, ratio, small_percent


@dataclass(frozen=True)
class Cell:
    """Text with a bar under it.

    Attributes:
        text: what it says.
        share: length of the bar, in [0, 1].
    """

    text: str
    share: float


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows.

    Attributes:
        caption: what it shows, with its unit.
        headers: one a column.
        rows: cells, as many as headers.
        prose: columns of words, which wrap; the others hold figures.
    """

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    prose: tuple[int, ...] = ()


def activity_table(counts: Counts) -> Table:
    """Spikes a layer."""
    return Table(
        "Spikes of an image. Shares are of a layer's neurons.",
        ("layer", "firing", "spikes", "neurons", "saturated", "silent", "never active"),
        tuple(_activity(layer) for layer in counts.layers),
    )


def _activity(layer: LayerCounts) -> tuple[str | Cell, ...]:
    return (
        layer.name,
        Cell(small_percent(layer.sparsity), _clamp(layer.sparsity)),
        number(layer.spikes / layer.samples),
        number(layer.neurons_per_sample),
        small_percent(_share(layer.saturated, layer.neurons)),
        small_percent(_share(layer.silent, layer.neurons)),
        small_percent(_share(layer.never_active_per_sample, layer.neurons_per_sample)),
    )


def operations_table(counts: Counts) -> Table:
    """Synaptic operations a layer, against the multiply-accumulates of a dense network; sums in the last row."""
    rows = [
        _operations(layer.name, layer.synaptic_operations, layer.analog_macs, layer.dense_macs, counts.samples)
        for layer in counts.layers
    ]
    total = counts.total()
    sums = (total["synaptic_operations"], total["analog_macs"], total["dense_macs"])
    headers = ("layer", "of dense", "synaptic operations", "MACs", "dense MACs")
    rows.append(_operations("all", *sums, counts.samples))
    if not total["analog_macs"]:
        headers = (*headers[:3], headers[4])
        rows = [(*row[:3], row[4]) for row in rows]
    return Table("Operations of an image", headers, tuple(rows))


def _operations(name: str, synops: int, analog: int, dense: int, samples: int) -> tuple[str | Cell, ...]:
    share = _share(synops + analog, dense)
    figures = (number(count / samples) for count in (synops, analog, dense))
    return (name, Cell(small_percent(share), _clamp(share)), *figures)


def energy_table(reports: Sequence[Report]) -> Table:
    """Energy a chip, the weakest status among its prices, and what has none."""
    timed = any(report.latency_us is not None for report in reports)
    rows = [
        (
            report.chip.name,
            *_nominal_and_range(report.total),
            *([_latency(report.latency_us)] if timed else []),
            report.status or "–",
            ", ".join(missing(report)) or "nothing",
        )
        for report in reports
    ]
    headers = ["chip", "energy", "range", *(["latency"] if timed else []), "weakest status", "not priced, so not in it"]
    caption = "Energy of an image at nominal prices; range: all prices at their low end, all at their high end"
    return Table(caption, tuple(headers), tuple(rows), (len(headers) - 1,))


def _nominal_and_range(energy: Range | None) -> tuple[str, str]:
    if energy is None:
        return "–", "–"
    nominal, low, high = (format_energy(pj) for pj in (energy.nominal, energy.low, energy.high))
    return nominal, "–" if low == high else f"{low} to {high}"


def missing(report: Report) -> list[str]:
    """Names of terms that are in no sum."""
    return list(dict.fromkeys(term.name for term in report.unpriced))


def comparison_table(comparison: Comparison) -> Table:
    """One row for each way of computing the network, with the ratio to the first one."""
    first = comparison.reports[0].total
    rows = []
    for report in comparison.reports:
        times = report.total.nominal / first.nominal if report.total and first and first.nominal > 0 else None
        sums = (format_range(energy) for energy in (report.total, report.compute_only, report.memory_included))
        rows.append((report.implementation, f"× {ratio(times)}" if times else "–", *sums, report.status or "–"))
    headers = ("computed as", "ratio", "energy", "compute only", "with memory", "weakest status")
    return Table(f"Energy of an image on {comparison.reports[0].chip.name}", headers, tuple(rows))


def prices_table(reports: Sequence[Report]) -> Table:
    """Every price that estimates on one chip used: what it is, and where it comes from."""
    groups: dict[tuple[str, str], list[Status]] = {}
    energies: dict[tuple[str, str], list[str]] = {}
    for term in (term for report in reports for term in report.terms):
        key = (term.price_name, term.price.source if term.price else "–")
        groups.setdefault(key, []).append(term.price.status if term.price else "unpublished")
        text = str(term.price).partition(",")[0] if term.price else "unpublished"
        energies.setdefault(key, []).append(text)
    rows = [
        (name.replace("_", " "), "; ".join(dict.fromkeys(energies[name, source])), weakest(statuses) or "–", source)
        for (name, source), statuses in groups.items()
    ]
    return Table("Prices", ("price of", "one costs", "status", "source"), tuple(rows), (1, 3))


def simulation_table(found: Simulation) -> Table:
    """Figures of a simulation."""
    settings, samples = found.settings, found.samples
    bits = "not rounded" if settings.weight_bits is None else f"{settings.weight_bits} bits"
    rows = [
        ("images", number(samples)),
        ("time steps of a window", number(settings.steps)),
        ("weights", f"{bits}, a unit for each {'channel' if settings.per_channel else 'layer'}"),
        ("accuracy", percent(found.accuracy)),
        ("by the first spike", percent(found.first_spike_accuracy)),
        ("ties of the first spike", f"{number(found.ties)} images ({small_percent(found.ties / samples)})"),
        ("without an output spike", f"{number(found.no_spike)} images"),
        ("first output spike", f"{found.mean_latency_steps:,.1f} steps after the image's start, on average"),
        ("potentials can be read", f"{found.potential_latency_steps:,} steps after the image's start"),
    ]
    return Table("Simulated in integers, with a clock", ("figure", "value"), tuple(rows), (1,))


def sweep_table(sweep: Sweep) -> Table:
    """Accuracy: steps downwards, weight bits across."""
    found = {(row.steps, row.weight_bits): row.accuracy for row in sweep.rows}
    bits = list(dict.fromkeys(row.weight_bits for row in sweep.rows))
    headers = ("steps", *(f"{each} bits" if each is not None else "float" for each in bits))
    rows = tuple(
        (str(steps), *(percent(found.get((steps, each))) for each in bits))
        for steps in sorted({row.steps for row in sweep.rows})
    )
    return Table(f"Accuracy over {number(sweep.samples)} images, by time steps and weight bits", headers, rows)


def sweep_details(sweep: Sweep) -> Table:
    """All figures of a sweep."""
    headers = ["steps", "bits", "by first spike", "ties", "spikes", "synaptic operations", "latency, steps"]
    priced = any(row.energy_pj is not None for row in sweep.rows)
    rows = tuple(_sweep_row(row, priced) for row in sweep.rows)
    return Table("All figures; those of work are of an image", (*headers, *(["energy"] if priced else [])), rows)


def _sweep_row(row: SweepRow, priced: bool) -> tuple[str, ...]:
    figures = [str(row.steps), bits_label(row.weight_bits), percent(row.first_spike_accuracy), small_percent(row.ties)]
    figures += [number(row.spikes), number(row.synaptic_operations), f"{row.latency_steps:,.1f}"]
    energy = "–" if row.energy_pj is None else format_energy(row.energy_pj)
    return (*figures, *([energy] if priced else []))


def pairs_table(caption: str, pairs: Iterable[tuple[str, object]]) -> Table:
    """Names and values."""
    return Table(caption, ("what", "value"), tuple((name, str(value)) for name, value in pairs), (1,))


def _latency(us: float | None) -> str:
    if us is None:
        return "–"
    for unit, size in (("µs", 1.0), ("ms", 1e3)):
        if us < 999.5 * size:
            return f"{us / size:.3g} {unit}"
    return f"{us / 1e6:.3g} s"


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _clamp(share: float) -> float:
    return min(1.0, max(0.0, share)) if share == share else 0.0
