"""Tables and CSV: what is not known shows, and is never 0."""

import csv
import io

import pytest
from rich.console import Console

from tests.hardware.energy.energy_cases import convolutional_network, dense_network
from ttfs_triton.hardware.energy.alternatives import RateCode
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.compare import compare
from ttfs_triton.hardware.energy.energy import estimate
from ttfs_triton.hardware.energy.prices import Price, Range
from ttfs_triton.hardware.energy.run_options import RunOptions
from ttfs_triton.hardware.energy.sensitivity import sensitivity
from ttfs_triton.report.energy_tables import (
    chips_table,
    comparison_table,
    csv_rows,
    format_energy,
    format_range,
    print_report,
    sensitivity_table,
    write_csv,
)


def shown(renderable):
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("pj", "text"),
    [
        (0, "0 pJ"),
        (1.5, "1.5 pJ"),
        (999.6, "1 nJ"),
        (12345, "12.3 nJ"),
        (486.7e6, "487 µJ"),
        (2e9, "2 mJ"),
        (3e12, "3 J"),
    ],
)
def test_energies_read_well(pj, text):
    assert format_energy(pj) == text


def test_ranges_are_shown_where_there_is_one():
    assert format_range(Range(1, 2, 3)) == "2 pJ (1 pJ to 3 pJ)"
    assert format_range(Range(2, 2, 2)) == "2 pJ"
    assert format_range(None) == "–"


def test_report_shows_sums_assumptions_and_what_has_no_price():
    console = Console(file=io.StringIO(), width=200)
    print_report(estimate(convolutional_network(), "odin", steps=4), console)
    text = console.file.getvalue()
    assert "compute only" in text
    assert "- not in any sum: neuron updates (the chip states no price for neuron_update)" in text
    assert "- not in any sum: leakage, idle power (the latency is not known: give step_us)" in text
    assert "- warning: 778 neurons exceed the 256 of one odin: at least 4 chips; static power is of one" in text
    assert text.index("Sums") < text.index("- clock-driven, 4 steps a window")


def test_comparison_shows_compute_and_memory_side_by_side():
    comparison = compare(convolutional_network(), "lemaire45:int8", RunOptions(steps=8), rate_codes=[RateCode(8, 0.1)])
    text = shown(comparison_table(comparison))
    for word in ("compute only", "memory included", "dense ANN", "zero-skipping ANN", "rate-coded, T = 8, 0.1"):
        assert word in text
    assert "firing share" in text
    event = shown(comparison_table(compare(convolutional_network(), "loihi", RunOptions(steps=8))))
    assert event.splitlines()[5].count("–") == 5  # a dense ANN has no price on Loihi: no energy, ratio or status


def test_chips_show_what_is_missing():
    reports = [estimate(convolutional_network(), name, steps=8) for name in ("anp_i", "odin")]
    text = shown(chips_table(reports, published=True))
    assert "leakage, multiply-accumulates, neuron updates" in text
    assert "487 µJ" in text
    assert "warning: 778 neurons" in text
    assert "synop" in shown(sensitivity_table(sensitivity(reports[0], spread=0.1)))


def test_csv_has_empty_cells_for_what_is_not_known(tmp_path):
    unknown = Price(None, unit="pJ", status="unpublished", source="asked in vain")
    chip = Chip("secret", "no figures", "including fetch", {"synop": unknown})
    reports = [estimate(dense_network(), name, steps=4, network="small") for name in (chip, "loihi", "odin")]
    path = write_csv(tmp_path / "energy.csv", *reports)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "network,layer,term,count,price_pj,low_pj,high_pj,status,source"
    assert lines[1] == "small,fc1,synaptic operations,20,,,,unpublished,asked in vain"
    rows = list(csv.DictReader(lines))
    assert len(rows) == sum(len(report.terms) for report in reports)
    for row in rows:
        assert (row["price_pj"] == "") == (row["status"] == "unpublished")
    hops = next(row for row in rows if row["term"] == "hops")
    assert (hops["count"], hops["price_pj"], hops["low_pj"], hops["high_pj"]) == ("", "3.5", "3", "4")


def test_csv_rows_multiply_to_the_total():
    report = estimate(convolutional_network(), "truenorth", steps=4)
    rows = [row for row in csv_rows(report) if row["price_pj"] != ""]
    total = sum(float(row["count"]) * float(row["price_pj"]) for row in rows)
    assert total == pytest.approx(report.total.nominal)
