"""Chips, read from TOML: prices with unit, range, status and source; what prices include; memories and capacity.

An unpublished price is None, not zero. An estimate names the operations without a price beside its total.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import KW_ONLY, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from ttfs_triton.command_line import problem_lines
from ttfs_triton.untrusted_files import read_regular
from ttfs_triton.wording import energy

FOLDER = Path(__file__).parent / "chips"
MAX_BYTES = 2**18  # of a chip file; those of the package have up to 10,000

Status = Literal["measured", "fitted", "simulated", "derived", "assumed", "unpublished"]
STATUSES: tuple[Status, ...] = get_args(Status)  # from the strongest to the weakest

# dimension: {unit: size in the dimension's first unit}. 1 µW · 1 µs = 1 pJ, and 1 µW/MHz = 1 pJ per clock cycle.
UNITS: dict[str, dict[str, float]] = {
    "energy": {"pJ": 1.0, "fJ": 1e-3, "nJ": 1e3, "µJ": 1e6, "mJ": 1e9, "J": 1e12},
    "power": {"µW": 1.0, "nW": 1e-3, "mW": 1e3, "W": 1e6},
    "power per frequency": {"µW/MHz": 1.0, "nW/MHz": 1e-3, "mW/MHz": 1e3},
    "frequency": {"MHz": 1.0, "kHz": 1e-3, "GHz": 1e3},
    "time": {"µs": 1.0, "ns": 1e-3, "ms": 1e3, "s": 1e6},
}
_DIMENSION = {unit: dimension for dimension, units in UNITS.items() for unit in units}

STRICT = ConfigDict(extra="forbid", strict=True)  # no other keys, and values of exactly the right type


def _spelled_unit(unit: str) -> str:
    """The unit with micro spelled µ (U+00B5); `unit` may have a u or the Greek letter instead."""
    unit = unit.replace("μ", "µ").replace("uJ", "µJ").replace("uW", "µW").replace("us", "µs")
    if unit not in _DIMENSION:
        raise ValueError(f"must be one of {', '.join(_DIMENSION)}")
    return unit


Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(gt=0, le=10**15)]
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]


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
        ValueError: 0 ≤ low ≤ value ≤ high does not hold, the source is missing, or value and status contradict.
    """

    value: Number | None = None
    low: Number | None = None
    high: Number | None = None
    _: KW_ONLY
    unit: Annotated[str, AfterValidator(_spelled_unit)]
    status: Status
    source: Annotated[str, Field(pattern=r"\S")]
    note: str = ""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.value is None) != (self.status == "unpublished"):
            rule = 'value must be given, unless status is "unpublished", which has none'
            raise ValueError(f"{rule}; got {self.value}, {self.status}")
        if self.value is None:
            return self
        low, high = (self.value if bound is None else bound for bound in (self.low, self.high))
        if not low <= self.value <= high:
            raise ValueError(f"value must be within low and high; got {low} ≤ {self.value} ≤ {high}")
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
    """An amount in three cases: all prices at their low ends, at their nominal values, and at their high ends."""

    low: float
    nominal: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.nominal + other.nominal, self.high + other.high)

    def scaled(self, factor: float) -> Range:
        """The range times a factor of at least 0."""
        return Range(self.low * factor, self.nominal * factor, self.high * factor)


def weakest(statuses: Iterable[Status]) -> Status | None:
    """The weakest of several statuses; None if there are none."""
    return max(statuses, key=STATUSES.index, default=None)


def energy_range(amount: Range | None) -> str:
    """An energy as text: "1.2 µJ", "1.2 µJ (0.9 µJ to 2 µJ)", or "–" if it is unknown."""
    if amount is None:
        return "–"
    low, high = energy(amount.low), energy(amount.high)
    return energy(amount.nominal) + (f" ({low} to {high})" if low != high else "")


PRICES = {
    "accumulate": "energy",  # one addition
    "multiply": "energy",
    "multiply_accumulate": "energy",  # one multiplication and one addition
    "compare": "energy",
    "synop": "energy",  # one synaptic operation: a spike meets a synapse
    "synop_conv": "energy",  # one synaptic operation of a convolution, if its price differs
    "neuron_update": "energy",  # one time step of a neuron that is awake
    "neuron_idle": "energy",  # one time step of a neuron that is asleep
    "spike_out": "energy",  # a neuron fires
    "message": "energy",  # a spike goes to one core or tile
    "hop": "energy",  # a message crosses one tile
    "leakage_power": "power",  # without clock and spikes
    "idle_power": "power per frequency",  # without spikes, per unit of clock frequency
    "clock": "frequency",  # at which the prices hold
    "step_time": "time",  # one time step, if the chip fixes it
}
"""Dimensions of all prices that a chip may have, except memory, whose prices go by size (`Memory`)."""

Scope = Literal["arithmetic", "including fetch", "including routing"]

SCOPES: dict[Scope, tuple[str, ...]] = {
    "arithmetic": ("synop", "synop_conv"),
    "including fetch": ("memory",),
    "including routing": ("memory", "spike_out", "message", "hop"),
}
"""By scope: costs that the price of a synaptic operation includes besides the addition; they are not charged again.

With "arithmetic", a synaptic operation has no price: its arithmetic has prices.
"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Access(Price):
    """Published price of one access to a memory of `size_kb` kB."""

    size_kb: Positive

    @model_validator(mode="after")
    def _is_energy(self) -> Self:
        if self.dimension != "energy" or self.value is None:
            raise ValueError(f"value must be a published energy; got {self}")
        return self


@dataclass(frozen=True, config=STRICT)
class Memory:
    """Prices of on-chip memories; a layer has one memory for its weights and one for its states.

    Attributes:
        accesses: prices of one access, in order of rising memory size.
        word_bits: bits that one access moves.
        packed: whether numbers narrower than a word share an access (contiguous, aligned). If not, a number is one
            access, as in Lemaire et al.
        addressing: whether computing addresses is charged, at one accumulate per address.
    """

    accesses: Annotated[tuple[Access, ...], Field(min_length=1)]
    word_bits: Whole = 64
    packed: bool = False
    addressing: bool = False

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if any(one.size_kb >= other.size_kb for one, other in pairwise(self.accesses)):
            raise ValueError(f"accesses must have rising sizes; got {[access.size_kb for access in self.accesses]}")
        return self

    @property
    def largest_bytes(self) -> float:
        """Size of the largest memory that has a price; larger memories are charged as banks of this size."""
        return self.accesses[-1].size_kb * 1024

    def access(self, size_bytes: float, bits: int) -> Price:
        """Price of reading or writing one number.

        Between two sizes the price is interpolated linearly in bytes; below the smallest size it is constant. A memory
        larger than the largest size consists of banks of that size; the wires between banks are not counted, so the
        high end extrapolates the line. The low end assumes full words, the high end one number per access.

        Args:
            size_bytes: size of the memory that holds the number.
            bits: bits of the number.
        """
        amount, share = self._at(size_bytes), bits / self.word_bits
        words = math.ceil(share)
        status = weakest(price.status for price in self.accesses)
        note = f"{size_bytes / 1024:,.1f} kB, {bits} bits a number"
        if status is None or size_bytes > self.largest_bytes:
            note, status = f"{note}; banks of {self.largest_bytes / 1024:,.0f} kB", "assumed"
        nominal, low, high = amount.nominal * (share if self.packed else words), amount.low * share, amount.high * words
        return Price(nominal, low, high, unit="pJ", status=status, source=self.accesses[0].source, note=note)

    def _at(self, size_bytes: float) -> Range:
        """Low, nominal and high price in pJ of one access to a memory of this size."""
        sizes = [round(price.size_kb * 1024) for price in self.accesses]
        amounts = [price.amount for price in self.accesses if price.amount is not None]
        above = min(bisect_left(sizes, size_bytes), len(sizes) - 1)
        if above == 0:
            return amounts[0]
        weight = (size_bytes - sizes[above - 1]) / (sizes[above] - sizes[above - 1])
        line = amounts[above - 1].scaled(1 - weight) + amounts[above].scaled(weight)
        return replace(amounts[-1], high=max(amounts[-1].high, line.high)) if weight > 1 else line


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Capacity:
    """Capacity of one chip; None where the source states none.

    Attributes:
        neurons: largest number of neurons.
        synapses: largest number of connections; a convolution's shared weight counts once per connection.
        weight_bits: most bits of a weight.
        source: where the capacity was published.
    """

    neurons: Whole | None = None
    synapses: Whole | None = None
    weight_bits: Whole | None = None
    source: str


@dataclass(frozen=True, config=STRICT)
class Chip:
    """Prices of one chip, or of arithmetic in one process, at one precision.

    Attributes:
        name: name of the file, with the precision if the file has several ("horowitz45:int8").
        description: the silicon and its operating point.
        synop_scope: key of `SCOPES`. With "arithmetic", arithmetic operations have prices; with any other scope,
            synaptic operations have.
        prices: prices by the keys of `PRICES`.
        memory: prices of memory accesses; None if there are none.
        capacity: how many neurons and synapses fit, and how wide weights may be.
        bits: width of the numbers in its arithmetic; None if not stated.
        node_nm: process node, nanometres.
        voltage_v: voltage at which the prices hold, volts.
        included: keys of `PRICES`, or "memory", that other prices include in addition to those that the scope names.
        notes: conditions and limits of the figures, for readers.
    Raises:
        ValueError: a price does not exist, has the wrong dimension, is charged twice or is missing for the scope.
    """

    name: str
    description: Annotated[str, Field(min_length=1)]
    synop_scope: Scope
    prices: dict[str, Price] = field(default_factory=dict)
    memory: Memory | None = None
    capacity: Capacity = Capacity(source="")
    bits: Whole | None = None
    node_nm: Positive | None = None
    voltage_v: Positive | None = None
    included: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for key in [*{*self.included} - {*PRICES, "memory"}, *{*self.prices} - {*PRICES}]:
            raise ValueError(f"included and prices must be of {', '.join(PRICES)}; got {key}")
        for key, price in self.prices.items():
            if price.dimension != PRICES[key]:
                units = ", ".join(UNITS[PRICES[key]])
                raise ValueError(f"prices.{key}.unit must measure {PRICES[key]}; got {price.unit}. Use one of {units}")
        for key in (*self.prices, *(["memory"] if self.memory else [])):
            if self.holds(key):
                holder = "included" if key in self.included else f'synop_scope = "{self.synop_scope}"'
                raise ValueError(f"{key} must be absent, because {holder} covers it already")
        for key in ("accumulate", "multiply_accumulate") if self.arithmetic else ("synop",):
            if key not in self.prices:
                rule = f'prices.{key} must be there for synop_scope = "{self.synop_scope}"'
                raise ValueError(f'{rule}; got none. Give it status "unpublished" if it is')
        return self

    def holds(self, key: str) -> bool:
        """Whether other prices include the price `key`, so that it must not be charged."""
        return key in SCOPES[self.synop_scope] or key in self.included

    @property
    def arithmetic(self) -> bool:
        """Whether arithmetic operations have prices, and not synaptic operations."""
        return self.synop_scope == "arithmetic"

    def exceeded(self, neurons: int, synapses: int, weight_bits: int) -> list[str]:
        """Sentences on the capacities that a network exceeds."""
        capacity, lines = self.capacity, []
        for name, needed in (("neurons", neurons), ("synapses", synapses)):
            there = getattr(capacity, name)
            if there is not None and needed > there:
                chips = f"at least {-(-needed // there):,} chips; static power counts one"
                lines.append(f"{needed:,} {name} exceed the {there:,} of one {self.name}: {chips}")
        if capacity.weight_bits is not None and weight_bits > capacity.weight_bits:
            lines.append(f"weights of {weight_bits} bits exceed the {capacity.weight_bits} bits of {self.name}")
        return lines


def available_chips() -> tuple[str, ...]:
    """Names that `load_chip` accepts without a file, one per precision: "loihi", "horowitz45:int8", ..."""
    names = []
    for path in sorted(FOLDER.glob("*.toml")):
        precisions = tomllib.loads(path.read_text(encoding="utf-8")).get("precisions", {})
        names += [f"{path.stem}:{precision}" for precision in precisions] or [path.stem]
    return tuple(names)


def load_chip(name_or_path: Chip | str | Path) -> Chip:
    """A chip that comes with the package, or one from a file of yours.

    Args:
        name_or_path: one of `available_chips()`, or the path of a TOML file like those in `ttfs_triton/energy/chips`,
            followed by ":precision" if the file has several precisions. A chip is returned as it is.
    Raises:
        ValueError: the chip or precision does not exist, or the file is invalid. The message names file, key and rule.
    Example:
        >>> loihi = load_chip("loihi")
        >>> loihi.description, str(loihi.prices["synop"])
        ('Intel Loihi, 14 nm, before silicon, at 0.75 V', '23.6 pJ, simulated')
        >>> load_chip("horowitz45:int8").prices["multiply_accumulate"].value
        0.23
    """
    if isinstance(name_or_path, Chip):
        return name_or_path
    name, precision = re.findall(r"(?s)\A(.*?)(?::(\w+))?\Z", str(name_or_path))[0]
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if name.endswith(".toml") and not path.is_file():
        raise ValueError(f"load_chip: chip must be a TOML file that exists; got {name}. Correct the path.")
    if not path.is_file():
        rule = f"one of {', '.join(available_chips())} or the path of a TOML file"
        remedy = "Nobody has published the energy of an operation of Loihi 2, Akida or Speck."
        raise ValueError(f"load_chip: chip must be {rule}; got {name_or_path}. {remedy}")
    try:
        values = tomllib.loads(read_regular(path, MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # not read, no UTF-8 or TOML, invalid dates, many brackets
        raise ValueError(f"load_chip: {path} must be TOML; got an error: {error}.") from error
    precisions = values.pop("precisions", {})
    changes = precisions.get(precision, {}) if isinstance(precisions, dict) else None
    if not isinstance(changes, dict) or precision not in (precisions or {""}):
        names = ", ".join(f"{name}:{other}" for other in precisions) if isinstance(precisions, dict) else ""
        got = f"precision {precision}" if precision else "no precision"
        raise ValueError(f"load_chip: chip must be one of {names or name}; got {got}.")
    prices = (values.get("prices", {}), changes.get("prices", {}))
    values |= changes | {"name": f"{path.stem}:{precision}" if precision else path.stem}
    if all(isinstance(table, dict) for table in prices):
        values["prices"] = prices[0] | prices[1]
    try:
        return TypeAdapter(Chip).validate_json(json.dumps(values, default=str))  # from JSON, tables become dataclasses
    except ValidationError as error:
        lines = "\n".join(problem_lines(error))
        raise ValueError(f"load_chip: {path} must follow the files in {FOLDER}:\n{lines}") from None


def load_chips(names: Iterable[str], first: Iterable[str] = ()) -> list[Chip]:
    """Chips by name, none twice; "all" stands for those of `first`, then all that come with the package."""
    named = (chip for name in names for chip in ((*first, *available_chips()) if name == "all" else (name,)))
    return [load_chip(name) for name in dict.fromkeys(named)]
