"""Prices: numbers with unit, range, status and source, and the units that they may have.

An unpublished price is None, not zero: an estimate lists the operations without a price beside the total.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, asdict
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from ttfs_triton.wording import energy

Status = Literal["measured", "fitted", "simulated", "derived", "assumed", "unpublished"]

STATUSES: tuple[Status, ...] = get_args(Status)
"""All statuses, from the strongest to the weakest."""

# dimension: {unit: size in the dimension's first unit}. 1 µW · 1 µs = 1 pJ, and 1 µW/MHz = 1 pJ a clock cycle.
UNITS: dict[str, dict[str, float]] = {
    "energy": {"pJ": 1.0, "fJ": 1e-3, "nJ": 1e3, "µJ": 1e6, "mJ": 1e9, "J": 1e12},
    "power": {"µW": 1.0, "nW": 1e-3, "mW": 1e3, "W": 1e6},
    "power per frequency": {"µW/MHz": 1.0, "nW/MHz": 1e-3, "mW/MHz": 1e3},
    "frequency": {"MHz": 1.0, "kHz": 1e-3, "GHz": 1e3},
    "time": {"µs": 1.0, "ns": 1e-3, "ms": 1e3, "s": 1e6},
}
MAX_AMOUNT = 1e12
"""Largest price, in the first unit of its dimension: 1 J an operation, 1 MW, 10¹⁸ Hz, twelve days."""
_DIMENSION = {unit: dimension for dimension, units in UNITS.items() for unit in units}

STRICT = ConfigDict(extra="forbid", strict=True)
"""Validation of a chip's file: only known keys, and only values of exactly the right type."""


def _known_unit(unit: str) -> str:
    """The unit with micro spelled µ (U+00B5); a u or the Greek letter is accepted too."""
    unit = unit.replace("μ", "µ").replace("uJ", "µJ").replace("uW", "µW").replace("us", "µs")
    if unit not in _DIMENSION:
        raise ValueError(f"must be one of {', '.join(_DIMENSION)}")
    return unit


Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class Price:
    """One published figure of a chip: value, range, unit, status and source.

    Attributes:
        value: nominal value in `unit`; None if it is unpublished.
        low, high: range that the sources allow, in `unit`. Default: the value.
        unit: one of the units in `UNITS`.
        status: "measured" on silicon, "fitted" to measurements, "simulated" before silicon, "derived" from published
            numbers, "assumed", or "unpublished".
        source: where the price was published; for an unpublished price, the publication that lacks it.
        note: what the price includes, and under which conditions it holds.
    Raises:
        ValueError: 0 ≤ low ≤ value ≤ high ≤ `MAX_AMOUNT` does not hold, the source is missing, or the value is None
            although the status is not "unpublished", or the reverse.
    """

    value: Number | None = None
    low: Number | None = None
    high: Number | None = None
    _: KW_ONLY
    unit: Annotated[str, AfterValidator(_known_unit)]
    status: Status
    source: Annotated[str, Field(pattern=r"\S")]
    note: str = ""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.value is None) != (self.status == "unpublished"):
            raise ValueError(f"value must be None exactly if status is unpublished; got {self.value}, {self.status}")
        low, high = (self.value if bound is None else bound for bound in (self.low, self.high))
        if self.value is None or low is None or high is None:
            if (self.low, self.high) != (None, None):
                raise ValueError("low and high must be None if value is None")
            return self
        if not low <= self.value <= high:
            raise ValueError(f"value must be within low and high; got {low} ≤ {self.value} ≤ {high}")
        if high * UNITS[self.dimension][self.unit] > MAX_AMOUNT:
            raise ValueError(f"value must be at most {MAX_AMOUNT:g} {next(iter(UNITS[self.dimension]))}; got {high}")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        return self

    @property
    def dimension(self) -> str:
        """Dimension of the unit, a key of `UNITS`."""
        return _DIMENSION[self.unit]

    @property
    def amount(self) -> Range | None:
        """Low, nominal and high value in the dimension's first unit (pJ, µW, MHz, µs); None if unpublished."""
        if self.value is None or self.low is None or self.high is None:
            return None
        size = UNITS[self.dimension][self.unit]
        return Range(self.low * size, self.value * size, self.high * size)

    def __str__(self) -> str:
        if self.value is None:
            return "unpublished"
        span = f" ({self.low:g} to {self.high:g})" if self.low != self.high else ""
        return f"{self.value:g}{span} {self.unit}, {self.status}"


@dataclass(frozen=True)
class Range:
    """An amount with all prices at their low ends, at their nominal values, and at their high ends."""

    low: float
    nominal: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.nominal + other.nominal, self.high + other.high)

    def scaled(self, factor: float) -> Range:
        """The range times a factor of at least 0."""
        return Range(self.low * factor, self.nominal * factor, self.high * factor)

    def to_dict(self) -> dict[str, float]:
        """The range as a dict with the keys "low", "nominal" and "high"."""
        return asdict(self)


def weakest(statuses: Iterable[Status]) -> Status | None:
    """The weakest of several statuses; None if there are none."""
    return max(statuses, key=STATUSES.index, default=None)


def energy_range(amount: Range | None) -> str:
    """ "1.2 µJ", "1.2 µJ (0.9 µJ to 2 µJ)", or "–" for an energy that is not known."""
    if amount is None:
        return "–"
    low, high = energy(amount.low), energy(amount.high)
    return energy(amount.nominal) + (f" ({low} to {high})" if low != high else "")
