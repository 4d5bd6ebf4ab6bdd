"""Prices and units: what is refused, what is converted, and that unpublished is not zero."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttfs_triton.hardware.energy.prices import STATUSES, UNITS, Price, Range, convert, dimension, weakest

GIVEN = {"unit": "pJ", "status": "measured", "source": "a paper"}
NUMBERS = st.floats(0, 1e6)


@pytest.mark.parametrize(
    ("value", "unit", "to", "expected"),
    [
        (1.5, "nJ", "pJ", 1500),
        (486.7, "µJ", "pJ", 486.7e6),
        (64.4, "mW", "µW", 64400),
        (1.78, "µW/MHz", "nW/MHz", 1780),
        (40, "MHz", "kHz", 40000),
        (1, "ms", "µs", 1000),
        (2, "ns", "µs", 0.002),
        (32, "kB", "B", 32768),
        (1, "uJ", "μJ", 1),
    ],
)
def test_convert_matches_paper(value, unit, to, expected):
    assert convert(value, unit, to) == pytest.approx(expected)


@given(NUMBERS, st.sampled_from([(unit, to) for units in UNITS.values() for unit in units for to in units]))
def test_convert_returns(value, pair):
    unit, to = pair
    assert convert(convert(value, unit, to), to, unit) == pytest.approx(value)


def test_power_times_time_is_energy():
    # 1 mW over 1 ms is 1 µJ: the first units of the three dimensions multiply.
    assert convert(1, "mW", "µW") * convert(1, "ms", "µs") == pytest.approx(convert(1, "µJ", "pJ"))


def test_units_are_refused_across_dimensions():
    with pytest.raises(ValueError, match=r"convert: unit must measure power, as mW does; got pJ. It measures energy"):
        convert(1, "pJ", "mW")
    with pytest.raises(ValueError, match=r"dimension: unit must be one of pJ, .*; got kWh"):
        dimension("kWh")
    with pytest.raises(ValueError, match="convert: unit must measure power"):
        Price(None, **GIVEN | {"status": "unpublished"}).in_unit("mW")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"value": 1, "unit": "kWh"}, "Price: unit must be one of pJ, .*; got kWh"),
        ({"value": 1, "unit": ""}, "Price: unit must be one of .*; got none"),
        ({"value": 1, "status": "guessed"}, "Price: status must be one of measured, .*; got guessed"),
        ({"value": 1, "source": " "}, "Price: source must say where the number was published; got none"),
        ({"value": None}, "Price: value must be None exactly if status is unpublished; got None with status measured"),
        ({"value": 0, "status": "unpublished"}, "Price: value must be None exactly if .*; got 0 with status unpubl"),
        ({"value": -1}, "Price: value must be a finite number, at least 0; got -1"),
        ({"value": float("inf")}, "Price: value must be a finite number, at least 0; got inf"),
        ({"value": float("nan")}, "Price: value must be a finite number, at least 0; got nan"),
        ({"value": True}, "Price: value must be a finite number, at least 0; got True"),
        ({"value": "1"}, "Price: value must be a finite number, at least 0; got 1"),
        ({"value": 1, "low": -2}, "Price: low must be a finite number, at least 0; got -2"),
        ({"value": 1, "low": 2, "high": 3}, "Price: value must be within low and high; got 2 ≤ 1 ≤ 3"),
        ({"value": 1, "high": 0.5}, "Price: value must be within low and high; got 1 ≤ 1 ≤ 0.5"),
        ({"value": None, "status": "unpublished", "high": 1}, "Price: low and high must be None where value is"),
    ],
)
def test_price_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        Price(**GIVEN | values)


def test_unpublished_price_has_no_amount():
    price = Price(None, **GIVEN | {"status": "unpublished"})
    assert price.amount is None
    assert price.in_unit("nJ").value is None
    assert str(price) == "unpublished"


def test_price_keeps_its_range_in_another_unit():
    price = Price(10, 5, 450, **GIVEN | {"status": "assumed"}).in_unit("nJ")
    assert (price.low, price.value, price.high) == pytest.approx((0.005, 0.01, 0.45))
    assert price.amount == Range(pytest.approx(5), pytest.approx(10), pytest.approx(450))
    assert str(Price(10, 5, 450, **GIVEN | {"status": "assumed", "unit": "uJ"})) == "10 (5 to 450) µJ, assumed"


@given(st.lists(NUMBERS, min_size=3, max_size=3).map(sorted), NUMBERS)
def test_range_stays_ordered(numbers, factor):
    total = Range(*numbers) + Range(*numbers).scaled(factor)
    assert total.low <= total.nominal <= total.high
    assert total.to_dict() == {"low": total.low, "nominal": total.nominal, "high": total.high}


def test_weakest_status_says_least():
    assert weakest(STATUSES) == "unpublished"
    assert weakest(["measured", "assumed", "fitted"]) == "assumed"
    assert weakest([]) is None
