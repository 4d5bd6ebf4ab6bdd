"""Prices: typed numbers with unit, range, status and source, and the few units they come in.

An unpublished price is None, which is not zero: what it would be multiplied with is reported beside the total.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal, NoReturn, get_args

Status = Literal["measured", "fitted", "simulated", "derived", "assumed", "unpublished"]

STATUSES: tuple[Status, ...] = get_args(Status)
"""From the strongest to the weakest."""

# dimension: {unit: size in the dimension's first unit}. 1 µW · 1 µs = 1 pJ, and 1 µW/MHz = 1 pJ a clock cycle.
UNITS: dict[str, dict[str, float]] = {
    "energy": {"pJ": 1.0, "fJ": 1e-3, "nJ": 1e3, "µJ": 1e6, "mJ": 1e9, "J": 1e12},
    "power": {"µW": 1.0, "nW": 1e-3, "mW": 1e3, "W": 1e6},
    "power per frequency": {"µW/MHz": 1.0, "nW/MHz": 1e-3, "mW/MHz": 1e3},
    "frequency": {"MHz": 1.0, "kHz": 1e-3, "GHz": 1e3},
    "time": {"µs": 1.0, "ns": 1e-3, "ms": 1e3, "s": 1e6},
    "memory": {"B": 1.0, "kB": 1024.0, "MB": 1024.0**2},
}
MAX_AMOUNT = 1e12
"""In the first unit of a dimension: a joule an operation, a megawatt, 10¹⁸ Hz, twelve days, a terabyte."""
_DIMENSION = {unit: dimension for dimension, units in UNITS.items() for unit in units}


def dimension(unit: str) -> str:
    """What a unit measures: a key of `UNITS`.

    Args:
        unit: "pJ", "mW", "µW/MHz", ...; "uJ" and the Greek letter "μJ" mean "µJ".
    Raises:
        ValueError: the unit is not in `UNITS`.
    """
    if _spelled(unit) not in _DIMENSION:
        refuse("dimension", "unit", f"be one of {', '.join(_DIMENSION)}", unit, "Convert it first.")
    return _DIMENSION[_spelled(unit)]


def convert(value: float, unit: str, to: str) -> float:
    """A number in another unit of the same dimension.

    Raises:
        ValueError: a unit is not known, or they measure different things.
    """
    ours, wanted = dimension(unit), dimension(to)
    if ours != wanted:
        refuse("convert", "unit", f"measure {wanted}, as {to} does", unit, f"It measures {ours}.")
    return value * UNITS[ours][_spelled(unit)] / UNITS[ours][_spelled(to)]


@dataclass(frozen=True)
class Price:
    """One number a chip is described by, with what is known about it.

    Attributes:
        value: nominal, in `unit`; None if it is unpublished.
        low, high: range that the sources leave open, in `unit`. Default: the value.
        unit: one of `UNITS`.
        status: "measured" on silicon, "fitted" to measurements, "simulated" before silicon, "derived" from published
            numbers, "assumed", or "unpublished".
        source: where it was published; for an unpublished one, where one would look.
        note: what it holds, and under which conditions.
    Raises:
        ValueError: not low ≤ value ≤ high, a negative number, an infinite one or one above `MAX_AMOUNT`, an unknown
            unit or status, no source, or a value that does not go with the status.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    _: KW_ONLY
    unit: str
    status: Status
    source: str
    note: str = ""

    def __post_init__(self) -> None:
        if _spelled(self.unit) not in _DIMENSION:
            refuse("Price", "unit", f"be one of {', '.join(_DIMENSION)}", self.unit or "none")
        object.__setattr__(self, "unit", _spelled(self.unit))
        if self.status not in STATUSES:
            refuse("Price", "status", f"be one of {', '.join(STATUSES)}", self.status)
        if not self.source.strip():
            refuse("Price", "source", "say where the number was published", "none")
        if (self.value is None) != (self.status == "unpublished"):
            got = f"{self.value} with status {self.status}"
            refuse("Price", "value", "be None exactly if status is unpublished", got)
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
                refuse("Price", name, "be a finite number, at least 0", number)
            if number > MAX_AMOUNT / UNITS[self.dimension][self.unit]:
                most = f"be at most {MAX_AMOUNT:g} {next(iter(UNITS[self.dimension]))}"
                refuse("Price", name, most, f"{number} {self.unit}")
        if self.value is None:
            if (self.low, self.high) != (None, None):
                refuse("Price", "low and high", "be None where value is", (self.low, self.high))
            return
        low, high = (self.value if bound is None else bound for bound in (self.low, self.high))
        if not low <= self.value <= high:
            refuse("Price", "value", "be within low and high", f"{low} ≤ {self.value} ≤ {high}")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @property
    def dimension(self) -> str:
        """What it measures: a key of `UNITS`."""
        return dimension(self.unit)

    @property
    def amount(self) -> Range | None:
        """Low, nominal and high in the first unit of its dimension (pJ, µW, MHz, µs, B); None if unpublished."""
        if self.value is None or self.low is None or self.high is None:
            return None
        size = UNITS[self.dimension][self.unit]
        return Range(self.low * size, self.value * size, self.high * size)

    def in_unit(self, unit: str) -> Price:
        """The same price in another unit of its dimension.

        Raises:
            ValueError: the unit measures something else.
        """
        convert(0.0, self.unit, unit)  # an unpublished price must have a fitting unit too
        numbers = {name: getattr(self, name) for name in ("value", "low", "high")}
        known = {name: convert(number, self.unit, unit) for name, number in numbers.items() if number is not None}
        return replace(self, unit=unit, **known)

    def __str__(self) -> str:
        if self.value is None:
            return "unpublished"
        span = f" ({self.low:g} to {self.high:g})" if self.low != self.high else ""
        return f"{self.value:g}{span} {self.unit}, {self.status}"


@dataclass(frozen=True)
class Range:
    """A sum of products with the same unit: all low, all nominal, all high.

    Attributes:
        low, nominal, high: `low` has every price at its low end at once, `high` at its high end.
    """

    low: float
    nominal: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.nominal + other.nominal, self.high + other.high)

    def scaled(self, factor: float) -> Range:
        """The range times a factor, at least 0."""
        return Range(self.low * factor, self.nominal * factor, self.high * factor)

    def to_dict(self) -> dict[str, float]:
        """{"low", "nominal", "high"}."""
        return {"low": self.low, "nominal": self.nominal, "high": self.high}


def weakest(statuses: Iterable[Status]) -> Status | None:
    """The status that says least of several; None of none."""
    return max(statuses, key=STATUSES.index, default=None)


def _spelled(unit: str) -> str:
    """Micro is spelled µ (U+00B5) here; u and the Greek letter mean the same."""
    return unit.replace("μ", "µ").replace("uJ", "µJ").replace("uW", "µW").replace("us", "µs")


def refuse(owner: str, name: str, rule: str, value: object, remedy: str = "") -> NoReturn:
    """Raise ValueError: which argument of which owner must follow which rule."""
    raise ValueError(f"{owner}: {name} must {rule}; got {value}. {remedy}".rstrip())
