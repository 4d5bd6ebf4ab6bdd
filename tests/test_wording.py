"""Numbers as people read them."""

import pytest

from ttfs_triton.energy import Range
from ttfs_triton.energy.chip import energy_range
from ttfs_triton.wording import duration, energy, interval, number, percent, ratio, small_percent

WORDS = {
    number: {
        None: "–", 0: "0", 31.42: "31.4", 0.5: "0.5", 916.04: "916", 2.5e15: "2,500 trillion", 30791.6: "30,792",
        1_234_567: "1.23 million", 3e9: "3 billion",
    },
    small_percent: {0.0: "0%", 1e-6: "< 0.01%", 0.00634: "0.63%", 0.2455: "24.6%", float("nan"): "–", 1.0: "100.0%"},
    percent: {0.9954: "99.54%", None: "–"},
    ratio: {5.7412: "5.74", 1830.4: "1,830", None: "–"},
    energy: {
        None: "–", float("nan"): "–", 0: "0 pJ", 1.5: "1.5 pJ", 999.6: "1 nJ", 12345: "12.3 nJ", 486.7e6: "487 µJ",
        2e9: "2 mJ", 3e12: "3 J",
    },
    energy_range: {Range(1, 2, 3): "2 pJ (1 pJ to 3 pJ)", Range(2, 2, 2): "2 pJ", None: "–"},
    duration: {None: "–", 0: "0 µs", 12.34: "12.3 µs", 1280: "1.28 ms", 2.5e6: "2.5 s"},
}  # fmt: skip


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words.__name__)
def test_values_read_well(words):
    assert {value: words(value) for value in WORDS[words]} == WORDS[words]


def test_interval_is_wilsons():
    assert interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert interval(1.0, 10)[1] == pytest.approx(1)
