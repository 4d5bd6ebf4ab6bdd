"""Chips read from TOML files: energy prices, which prices include others, memory and capacity."""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from ttfs_triton.command_line import problem_lines
from ttfs_triton.energy.prices import STRICT, Price, Range, weakest
from ttfs_triton.untrusted_files import read_regular

Whole = Annotated[int, Field(gt=0, le=10**15)]
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]

FOLDER = Path(__file__).parent / "chips"

# Chips that users often ask for, although nobody has published the energy of one of their operations.
NO_FIGURES = {"loihi2": "Loihi 2", "akida": "Akida", "speck": "Speck"}

MAX_BYTES = 2**18  # of a chip file; the package's own files have up to 10,000

PRICES: dict[str, tuple[str, str]] = {
    "accumulate": ("energy", "one addition"),
    "multiply": ("energy", "one multiplication"),
    "multiply_accumulate": ("energy", "one multiplication and one addition"),
    "compare": ("energy", "one comparison"),
    "synop": ("energy", "one synaptic operation: a spike meets a synapse"),
    "synop_conv": ("energy", "one synaptic operation of a convolution, if its price differs"),
    "neuron_update": ("energy", "one time step of a neuron that is awake"),
    "neuron_idle": ("energy", "one time step of a neuron that is asleep"),
    "spike_out": ("energy", "a neuron fires"),
    "message": ("energy", "a spike goes to one core or tile"),
    "hop": ("energy", "a message crosses one tile"),
    "leakage_power": ("power", "power without clock and spikes"),
    "idle_power": ("power per frequency", "power without spikes, for each unit of clock frequency"),
    "clock": ("frequency", "clock frequency at which the prices hold"),
    "step_time": ("time", "one time step, if the chip fixes it"),
}
"""Every price that a chip may have: its dimension and what it pays for. Memory has its own prices, by size."""

Scope = Literal["arithmetic", "including fetch", "including routing", "whole-chip average"]

_ROUTING = ("memory", "spike_out", "message", "hop")
SCOPES: dict[Scope, tuple[str, ...]] = {
    "arithmetic": (),
    "including fetch": ("memory",),
    "including routing": _ROUTING,
    "whole-chip average": (*_ROUTING, "neuron_update", "neuron_idle", "leakage_power", "idle_power"),
}
"""Scopes: costs that the price of a synaptic operation includes besides the addition, and that are not charged again.

"whole-chip average" is power over rate at one operating point. It includes static power and neuron updates, and it is
wrong at any other operating point.
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
    """Prices of on-chip memories, one memory for the weights and one for the states of each layer.

    Attributes:
        accesses: prices of one access, in order of rising memory size.
        word_bits: bits that one access moves.
        packed: whether numbers narrower than a word share an access (contiguous, aligned). If not, each number is one
            access, as in Lemaire et al.
        addressing: whether computing addresses is charged, at one accumulate for each address.
    """

    accesses: Annotated[tuple[Access, ...], Field(min_length=1)]
    word_bits: Whole = 64
    packed: bool = False
    addressing: bool = False

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if any(one.size_kb >= other.size_kb for one, other in pairwise(self.accesses)):
            raise ValueError(f"accesses must have rising sizes; got {[each.size_kb for each in self.accesses]}")
        return self

    @property
    def largest_bytes(self) -> float:
        """Size of the largest memory that has a price; larger ones are charged as banks of it."""
        return self.accesses[-1].size_kb * 1024

    def access(self, size_bytes: float, bits: int) -> Price:
        """Price of reading or writing one number.

        Between two sizes the price is interpolated linearly in bytes; below the smallest size it is constant. A memory
        larger than the largest size consists of banks of that size; the wires between them are not counted, so the high
        end extrapolates the line. The low end assumes full words, the high end one number for each access.

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
        known = [price.amount for price in self.accesses if price.amount is not None]
        above = min(bisect_left(sizes, size_bytes), len(sizes) - 1)
        if above == 0:
            return known[0]
        weight = (size_bytes - sizes[above - 1]) / (sizes[above] - sizes[above - 1])
        line = known[above - 1].scaled(1 - weight) + known[above].scaled(weight)
        return replace(known[-1], high=max(known[-1].high, line.high)) if weight > 1 else line


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Capacity:
    """Capacity of one chip; None where the source states none.

    Attributes:
        neurons: largest number of neurons.
        synapses: largest number of connections; a convolution's shared weight counts at each of its connections.
        weight_bits: most bits of a weight.
        source: where the capacity was published.
    """

    neurons: Whole | None = None
    synapses: Whole | None = None
    weight_bits: Whole | None = None
    source: str


NOT_STATED = Capacity(source="")


@dataclass(frozen=True, config=STRICT)
class Chip:
    """Prices of one chip, or of arithmetic in one process, at one precision.

    Attributes:
        name: name of the file, with the precision if the file has several ("horowitz45:int8").
        description: the silicon and its operating point.
        synop_scope: key of `SCOPES`. With "arithmetic", arithmetic operations have prices; with every other scope,
            synaptic operations have.
        prices: prices by the keys of `PRICES`.
        memory: prices of memory accesses; None if they have none.
        capacity: how many neurons and synapses fit, and how wide weights may be.
        bits: width of the numbers in its arithmetic; None if not stated.
        node_nm: process node, nanometres.
        voltage_v: voltage at which the prices hold, volts.
        included: keys of `PRICES`, or "memory", that other prices include in addition to the scope's.
        alternatives: published figures that are not charged, because the scope includes them or a better one exists.
        notes: conditions and limits of the figures, for readers.
    Raises:
        ValueError: a price is unknown, has the wrong dimension, is charged twice or is missing for the scope; or a
            clock or step time is 0.
    """

    name: str
    description: Annotated[str, Field(min_length=1)]
    synop_scope: Scope
    prices: dict[str, Price] = field(default_factory=dict)
    memory: Memory | None = None
    capacity: Capacity = NOT_STATED
    bits: Whole | None = None
    node_nm: Positive | None = None
    voltage_v: Positive | None = None
    included: tuple[str, ...] = ()
    alternatives: dict[str, Price] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for key in {*self.included} - {*PRICES, "memory"}:
            raise ValueError(f"included must name prices: {', '.join(PRICES)} or memory; got {key}")
        for key, price in self.prices.items():
            if key not in PRICES:
                raise ValueError(f"prices must be of {', '.join(PRICES)}; got {key}.{suggestion(key, PRICES)}")
            if price.dimension != PRICES[key][0]:
                raise ValueError(f"prices.{key}.unit must measure {PRICES[key][0]}; got {price.unit}")
            if key in ("clock", "step_time") and price.amount is not None and not price.amount.low > 0:
                raise ValueError(f"prices.{key} must be positive: energies are divided by it; got {price}")
        for key in (*self.prices, *(["memory"] if self.memory else [])):
            if self.holds(key):
                holder = "included" if key in self.included else f'synop_scope = "{self.synop_scope}"'
                raise ValueError(f"{key} must be absent, because {holder} covers it already. Move it to alternatives")
        for key in ("accumulate", "multiply_accumulate") if self.arithmetic else ("synop",):
            if key not in self.prices:
                rule = f'prices.{key} must be there for synop_scope = "{self.synop_scope}"'
                raise ValueError(f'{rule}; got none. Give it status "unpublished" if it is')
        if self.arithmetic and "synop" in self.prices:
            raise ValueError('prices.synop must be absent for synop_scope = "arithmetic". Choose another scope')
        return self

    def holds(self, key: str) -> bool:
        """Whether other prices include this one, so that it must not be charged."""
        return key in SCOPES[self.synop_scope] or key in self.included

    @property
    def arithmetic(self) -> bool:
        """Whether arithmetic operations have prices, and not synaptic operations."""
        return self.synop_scope == "arithmetic"

    def exceeded(self, neurons: int, synapses: int, weight_bits: int | None) -> list[str]:
        """One sentence for each capacity that a network exceeds; `weight_bits` is None if weights are not rounded."""
        capacity, lines = self.capacity, []
        for name, needed in (("neurons", neurons), ("synapses", synapses)):
            there = getattr(capacity, name)
            if there is not None and needed > there:
                chips = f"at least {-(-needed // there):,} chips; static power counts one"
                lines.append(f"{needed:,} {name} exceed the {there:,} of one {self.name}: {chips}")
        if capacity.weight_bits is not None and (weight_bits is None or weight_bits > capacity.weight_bits):
            weights = "weights that are not rounded" if weight_bits is None else f"weights of {weight_bits} bits"
            lines.append(f"{weights} exceed the {capacity.weight_bits} bits of {self.name}")
        return lines


def suggestion(word: str, known: Collection[str]) -> str:
    """The text " Did you mean …?" if a word is similar to a known one, else an empty text."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


_KEYS = {own.name for table in (Chip, Memory, Access, Capacity) for own in fields(table)}


def available_chips() -> tuple[str, ...]:
    """Names that `load_chip` accepts without a file, one for each precision: "loihi", "horowitz45:int8", ..."""
    names = []
    for path in sorted(FOLDER.glob("*.toml")):
        precisions = tomllib.loads(path.read_text(encoding="utf-8")).get("precisions", {})
        names += [f"{path.stem}:{precision}" for precision in precisions] or [path.stem]
    return tuple(names)


def load_chip(name_or_path: str | Path) -> Chip:
    """A chip that comes with the package, or a chip from the user's own file.

    Args:
        name_or_path: one of `available_chips()`, or the path of a TOML file like those in
            `ttfs_triton/energy/chips`, followed by ":precision" if the file has several precisions.
    Raises:
        ValueError: the chip or precision does not exist, its figures are unpublished, or the file is invalid. The
            message names file, key and rule.
    Example:
        >>> loihi = load_chip("loihi")
        >>> loihi.description, str(loihi.prices["synop"])
        ('Intel Loihi, 14 nm, before silicon, at 0.75 V', '23.6 pJ, simulated')
        >>> load_chip("horowitz45:int8").prices["multiply_accumulate"].value
        0.23
    """
    path, precision = _locate(str(name_or_path))
    try:
        values = tomllib.loads(read_regular(path, MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # not read, no UTF-8 or TOML, invalid dates, many brackets
        raise ValueError(f"load_chip: {path} must be TOML; got an error: {error}.") from error
    precisions = values.pop("precisions", {})
    own = precisions.get(precision, {}) if isinstance(precisions, dict) else None
    if not isinstance(own, dict) or precision not in (precisions or {None}):
        names = ", ".join(f"{path.stem}:{name}" for name in precisions) if isinstance(precisions, dict) else ""
        got = f"precision {precision}" if precision else "no precision"
        remedy = "Each precision is a table [precisions.NAME] in the file."
        raise ValueError(f"load_chip: name_or_path must be one of {names or path.stem}; got {got}. {remedy}")
    prices = (values.get("prices", {}), own.get("prices", {}))
    values |= own | {"name": path.stem if precision is None else f"{path.stem}:{precision}"}
    if all(isinstance(table, dict) for table in prices):
        values["prices"] = prices[0] | prices[1]
    try:
        return TypeAdapter(Chip).validate_json(json.dumps(values, default=str))  # from JSON, tables become dataclasses
    except ValidationError as error:
        lines = "\n".join(problem_lines(error, unknown=_unknown))
        raise ValueError(f"load_chip: {path} must follow the files in {FOLDER}:\n{lines}") from None


def _unknown(key: str) -> str:
    return f"there is no such key.{suggestion(key.rpartition('.')[2], _KEYS)}"


def load_chips(names: Iterable[str], every: Iterable[str] = ()) -> list[Chip]:
    """Chips by name, each once; "all" stands for those of `every`, then all that come with the package."""
    named = (each for name in names for each in ((*every, *available_chips()) if name == "all" else (name,)))
    return [load_chip(name) for name in dict.fromkeys(named)]


def as_chip(chip: Chip | str | Path) -> Chip:
    """The chip itself; a name or a path is loaded first."""
    return chip if isinstance(chip, Chip) else load_chip(chip)


def _locate(name: str) -> tuple[Path, str | None]:
    """File and precision of a chip's name or path."""
    path, separator, precision = name.rpartition(":") if re.search(r":\w+$", name) else (name, "", "")
    if path.endswith(".toml"):
        if not Path(path).is_file():
            raise ValueError(f"load_chip: name_or_path must be an existing file; got {path}.")
        return Path(path), precision if separator else None
    if (file := FOLDER / f"{path}.toml").is_file():
        return file, precision if separator else None
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if plain in NO_FIGURES:
        raise ValueError(
            f"load_chip: name_or_path must be a chip with published prices; got {name}. No public per-operation figure "
            f"exists for {NO_FIGURES[plain]}. If you have one, write a TOML file."
        )
    known = available_chips()
    raise ValueError(
        f"load_chip: name_or_path must be one of {', '.join(known)} or the path of a TOML file; got {name}."
        + suggestion(path, [other.partition(":")[0] for other in known])
    )
