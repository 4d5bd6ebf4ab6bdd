"""One price at a time."""

import pytest

from tests.hardware.energy.energy_cases import convolutional_network, dense_network
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.estimate import estimate, sensitivity
from ttfs_triton.hardware.energy.prices import Price


def test_swings_are_the_ranges_of_prices():
    report = estimate(dense_network(), "spinnaker2", steps=4)
    (swing,) = sensitivity(report)
    operations = 20 + 3
    assert swing.price_name == "synop"
    assert swing.nominal == report.total.nominal
    assert swing.high - swing.nominal == pytest.approx(operations * (450 - 67.1))
    assert swing.nominal - swing.low == pytest.approx(operations * (67.1 - 10))


def test_spread_moves_prices_without_a_range():
    report = estimate(convolutional_network(), "loihi", steps=4, hops_per_spike=1)
    assert [swing.price_name for swing in sensitivity(report)] == ["hop"]
    swings = sensitivity(report, spread=0.1)
    assert {swing.price_name for swing in swings} == {"hop", "message", "neuron_idle", "neuron_update", "synop"}
    assert [swing.width for swing in swings] == sorted((swing.width for swing in swings), reverse=True)
    assert swings[0].width == pytest.approx(0.2 * report.by_price()[swings[0].price_name].nominal)


def test_ends_of_all_prices_together_are_the_ends_of_the_total():
    report = estimate(convolutional_network(), "lemaire45:int8", steps=4)
    swings = sensitivity(report)
    assert report.total.low == pytest.approx(report.total.nominal + sum(s.low - s.nominal for s in swings))
    assert report.total.high == pytest.approx(report.total.nominal + sum(s.high - s.nominal for s in swings))


def test_nothing_moves_where_nothing_has_a_price():
    unknown = Price(None, unit="pJ", status="unpublished", source="nowhere")
    report = estimate(dense_network(), Chip("secret", "no figures", "including fetch", {"synop": unknown}), steps=4)
    assert sensitivity(report, spread=0.5) == ()
    with pytest.raises(ValueError, match=r"sensitivity: spread must be in \[0, 1\]; got 20. 0.2 is"):
        sensitivity(report, spread=20)
