"""A chip, as far as its energy is known: prices, what they hold already, and what fits."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

from pydantic import Field

from ttfs_triton.hardware.energy.prices import Price, Range, refuse, weakest

Whole = Annotated[int, Field(gt=0, le=10**15)]
"""As a chip's file may have it."""

PRICES: dict[str, tuple[str, str]] = {
    "accumulate": ("energy", "one addition"),
    "multiply_accumulate": ("energy", "one multiplication and one addition"),
    "compare": ("energy", "one comparison"),
    "divide": ("energy", "one division"),
    "synop": ("energy", "one synaptic operation: a spike meets a synapse"),
    "synop_conv": ("energy", "the same where weights are shared, if that costs another price"),
    "neuron_update": ("energy", "one time step of a neuron that is awake"),
    "neuron_idle": ("energy", "one time step of a neuron that is not"),
    "spike_out": ("energy", "a neuron fires"),
    "message": ("energy", "a spike goes to one core or tile"),
    "hop": ("energy", "a message crosses one tile"),
    "leakage_power": ("power", "power at no clock and no spikes"),
    "idle_power": ("power per frequency", "power a clock frequency, at no spikes"),
    "clock": ("frequency", "clock frequency at which the prices hold"),
    "step_time": ("time", "one time step, if the chip fixes it"),
}
"""Every price a chip may have: its dimension and what it is for. Memory has prices of its own, by size."""

_FETCH = ("memory",)
_ROUTING = (*_FETCH, "spike_out", "message", "hop")
_AVERAGE = (*_ROUTING, "neuron_update", "neuron_idle", "leakage_power", "idle_power")

SCOPES: dict[str, tuple[str, ...]] = {
    "arithmetic": (),
    "including fetch": _FETCH,
    "including routing": _ROUTING,
    "whole-chip average": _AVERAGE,
}
"""What the price of a synaptic operation holds besides the addition, so that nothing is charged twice.

"whole-chip average" is power over rate at one operating point: static power and neuron updates are in it, and it is
wrong at any other point.
"""


@dataclass(frozen=True)
class Memory:
    """On-chip memories, one for the weights and one for the states of each layer.

    Attributes:
        points: (size in bytes, price of one access in pJ), by rising size.
        word_bits: what one access moves.
        packed: whether numbers narrower than a word share an access (contiguous, aligned). If not, each number is one
            access, as Lemaire et al. count.
        addressing: whether computing addresses is charged, as one accumulate an access by an event.
    """

    points: tuple[tuple[int, Price], ...]
    word_bits: int = 64
    packed: bool = False
    addressing: bool = False

    def holds(self, size_bytes: float) -> bool:
        """Whether a price covers a memory of this size; larger ones are charged as banks of the largest."""
        return size_bytes <= self.points[-1][0]

    def access(self, size_bytes: float, bits: int) -> Price:
        """The price of reading or writing one number.

        Between two sizes the price is interpolated linearly in bytes, below the smallest it is the smallest's. A memory
        beyond the largest is banks of the largest: its wires are not counted, so the high end continues the line.
        The low end has words packed full, the high end one number an access.

        Args:
            size_bytes: of the memory that holds the number.
            bits: of the number.
        Returns:
            pJ a number, with the weakest status that went into it.
        """
        amount, share = self._at(size_bytes), bits / self.word_bits
        words = max(1.0, share)
        status = weakest(price.status for _, price in self.points)
        note = f"{size_bytes / 1024:,.1f} kB, {bits} bits a number"
        if status is None or not self.holds(size_bytes):
            note, status = f"{note}; banks of {self.points[-1][0] / 1024:,.0f} kB", "assumed"
        return Price(
            value=amount.nominal * (share if self.packed else words),
            low=amount.low * share,
            high=amount.high * words,
            unit="pJ",
            status=status,
            source=self.points[0][1].source,
            note=note,
        )

    def _at(self, size_bytes: float) -> Range:
        """Low, nominal and high price of a full access, pJ."""
        sizes, known = [], []
        for size, price in self.points:
            assert price.amount is not None
            sizes.append(size)
            known.append(price.amount)
        above = min(bisect_left(sizes, size_bytes), len(sizes) - 1)
        if above == 0:
            return known[0]
        weight = (size_bytes - sizes[above - 1]) / (sizes[above] - sizes[above - 1])
        line = known[above - 1].scaled(1 - weight) + known[above].scaled(weight)
        return replace(known[-1], high=max(known[-1].high, line.high)) if weight > 1 else line


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What fits on one chip; None is not stated.

    Attributes:
        neurons: at most.
        synapses: connections at most; a weight that a convolution shares is stored at each unless the chip says so.
        weight_bits: of a weight, at most.
        source: where it was published.
    """

    neurons: Whole | None = None
    synapses: Whole | None = None
    weight_bits: Whole | None = None
    source: str


NOT_STATED = Capacity(source="")


@dataclass(frozen=True)
class Chip:
    """Prices of one chip, or of arithmetic in one process, at one precision.

    Attributes:
        name: of the file, and the precision if the file has several ("horowitz45:int8").
        description: which silicon, which operating point.
        synop_scope: a key of `SCOPES`. "arithmetic" prices operations, and every other scope synaptic operations.
        prices: by the keys of `PRICES`.
        memory: None where its accesses have no price.
        capacity: what fits.
        bits: of the numbers its arithmetic works on; None if not stated.
        node_nm: of the process, nanometres.
        voltage_v: at which the prices hold, volts.
        included: keys of `PRICES`, or "memory", that other prices hold already, besides what the scope says.
        alternatives: published figures that are not charged, because the scope holds them or a better one exists.
        notes: what a reader must know about the figures.
    Raises:
        ValueError: a process or voltage, clock or step that is not positive and finite; an unknown scope or price, a
            price in the wrong dimension, one that is charged twice, or none for the operations of that scope.
    """

    name: str
    description: str
    synop_scope: str
    prices: Mapping[str, Price]
    memory: Memory | None = None
    capacity: Capacity = NOT_STATED
    bits: int | None = None
    node_nm: float | None = None
    voltage_v: float | None = None
    included: tuple[str, ...] = ()
    alternatives: Mapping[str, Price] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        refused = partial(refuse, f"Chip {self.name}")
        if self.synop_scope not in SCOPES:
            refused("synop_scope", f"be one of {', '.join(SCOPES)}", self.synop_scope)
        for key in self.included:
            if key not in PRICES and key != "memory":
                refused("included", f"name prices: {', '.join(PRICES)} or memory", key)
        for key, price in self.prices.items():
            if key not in PRICES:
                refused(f"prices.{key}", f"be one of {', '.join(PRICES)}", key, suggestion(key, PRICES).strip())
            wanted, amount = PRICES[key][0], price.amount
            if price.dimension != wanted:
                remedy = f"That measures {price.dimension}."
                refused(f"prices.{key}.unit", f"measure {wanted}", price.unit, remedy)
            if key in ("clock", "step_time") and amount is not None and not amount.low > 0:
                refused(f"prices.{key}", "be positive: energies are divided by it", price)
        for key in (*self.prices, *(["memory"] if self.memory else [])):
            if self.holds(key):
                holder = "included" if key in self.included else f'synop_scope = "{self.synop_scope}"'
                name = key if key == "memory" else f"prices.{key}"
                refused(name, f"be absent, for {holder} holds it already", "one", "Move it to alternatives.")
        for name in ("node_nm", "voltage_v"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1e12:
                refused(name, "be positive and finite", value)
        for key in ("accumulate", "multiply_accumulate") if self.arithmetic else ("synop",):
            if key not in self.prices:
                remedy = 'Give it status "unpublished" if it is.'
                refused(f"prices.{key}", f'be there for synop_scope = "{self.synop_scope}"', "none", remedy)
        if self.arithmetic and "synop" in self.prices:
            remedy = "Price accumulate, or choose a scope that says what a synaptic operation holds."
            refused("prices.synop", 'be absent for synop_scope = "arithmetic"', self.prices["synop"], remedy)

    def holds(self, key: str) -> bool:
        """Whether other prices hold this one already, so that it must not be charged."""
        return key in SCOPES[self.synop_scope] or key in self.included

    @property
    def arithmetic(self) -> bool:
        """Whether operations are priced, not synaptic operations."""
        return self.synop_scope == "arithmetic"

    def exceeded(self, neurons: int, synapses: int, weight_bits: int | None) -> list[str]:
        """What of a network does not fit, in words; empty where it does, or where `capacity` states nothing.

        Args:
            neurons, synapses: of the network.
            weight_bits: of a weight; None for weights that are not rounded.
        """
        capacity, lines = self.capacity, []
        for name, needed in (("neurons", neurons), ("synapses", synapses)):
            there = getattr(capacity, name)
            if there is not None and needed > there:
                chips = f"at least {-(-needed // there):,} chips; static power is of one"
                lines.append(f"{needed:,} {name} exceed the {there:,} of one {self.name}: {chips}")
        if capacity.weight_bits is not None and (weight_bits is None or weight_bits > capacity.weight_bits):
            weights = "weights that are not rounded" if weight_bits is None else f"weights of {weight_bits} bits"
            lines.append(f"{weights} exceed the {capacity.weight_bits} bits of {self.name}")
        return lines


def suggestion(word: str, known: Collection[str]) -> str:
    """ " Did you mean …?" if a word is nearly a known one, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""
