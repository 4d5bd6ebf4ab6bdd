"""Numbers as people read them."""

import pytest

from ttfs_triton.hardware import Range
from ttfs_triton.wording import duration, energy, energy_range, interval, number, percent, ratio, small_percent


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (31.42, "31.4"),
        (0.5, "0.5"),
        (916.04, "916"),
        (2.5e15, "2,500 trillion"),
        (30791.6, "30,792"),
        (1_234_567, "1.23 million"),
        (3e9, "3 billion"),
    ],
)
def test_number_reads_well(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0%"), (1e-6, "< 0.01%"), (0.00634, "0.63%"), (0.2455, "24.6%"), (float("nan"), "–"), (1.0, "100.0%")],
)
def test_small_percent_reads_well(value, text):
    assert small_percent(value) == text


def test_percent_and_ratio_read_well():
    assert (percent(0.9954), percent(None)) == ("99.54%", "–")
    assert (ratio(5.7412), ratio(1830.4), ratio(None)) == ("5.74", "1,830", "–")


def test_interval_is_wilsons():
    low, high = interval(0.5, 10)
    assert (low, high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert interval(1.0, 10)[1] == pytest.approx(1)


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
    assert energy(pj) == text


def test_ranges_are_shown_where_there_is_one():
    assert energy_range(Range(1, 2, 3)) == "2 pJ (1 pJ to 3 pJ)"
    assert energy_range(Range(2, 2, 2)) == "2 pJ"
    assert energy_range(None) == "–"


def test_durations_read_well():
    assert [duration(us) for us in (None, 0, 12.34, 1280, 2.5e6)] == ["–", "0 µs", "12.3 µs", "1.28 ms", "2.5 s"]
    assert energy(None) == energy(float("nan")) == "–"
