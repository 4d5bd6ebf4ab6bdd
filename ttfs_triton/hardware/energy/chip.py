"""A chip, as far as its energy is known: prices, what they hold already, and what fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ttfs_triton.hardware.energy.memory import Memory
from ttfs_triton.hardware.energy.prices import Price

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
class Capacity:
    """What fits on one chip; None is not stated.

    Attributes:
        neurons: at most.
        synapses: connections at most; a weight that a convolution shares is stored at each unless the chip says so.
        weight_bits: of a weight, at most.
        source: where it was published.
    """

    neurons: int | None = None
    synapses: int | None = None
    weight_bits: int | None = None
    source: str = ""


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
        ValueError: an unknown scope or price, a price in the wrong dimension, one that is charged twice, or none for
            the operations of that scope.
    """

    name: str
    description: str
    synop_scope: str
    prices: Mapping[str, Price]
    memory: Memory | None = None
    capacity: Capacity = field(default_factory=Capacity)
    bits: int | None = None
    node_nm: float | None = None
    voltage_v: float | None = None
    included: tuple[str, ...] = ()
    alternatives: Mapping[str, Price] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.synop_scope not in SCOPES:
            self._refuse("synop_scope", f"be one of {', '.join(SCOPES)}", self.synop_scope)
        for key in self.included:
            if key not in PRICES and key != "memory":
                self._refuse("included", f"name prices: {', '.join(PRICES)} or memory", key)
        for key, price in self.prices.items():
            if key not in PRICES:
                self._refuse(f"prices.{key}", f"be one of {', '.join(PRICES)}", key)
            wanted = PRICES[key][0]
            if price.dimension != wanted:
                self._refuse(f"prices.{key}.unit", f"measure {wanted}", price.unit, f"That measures {price.dimension}.")
            if self.holds(key):
                self._twice(f"prices.{key}", str(price))
        if self.memory is not None and self.holds("memory"):
            self._twice("memory", f"{len(self.memory.points)} sizes")
        self._check_operations()

    def _check_operations(self) -> None:
        arithmetic = self.synop_scope == "arithmetic"
        for key in ("accumulate", "multiply_accumulate") if arithmetic else ("synop",):
            if key not in self.prices:
                scope = f'synop_scope = "{self.synop_scope}"'
                self._refuse(f"prices.{key}", f"be there for {scope}", "none", 'Give it status "unpublished" if it is.')
        if arithmetic and "synop" in self.prices:
            remedy = "Price accumulate, or choose a scope that says what a synaptic operation holds."
            self._refuse("prices.synop", 'be absent for synop_scope = "arithmetic"', self.prices["synop"], remedy)

    def holds(self, key: str) -> bool:
        """Whether other prices hold this one already, so that it must not be charged."""
        return key in SCOPES[self.synop_scope] or key in self.included

    @property
    def arithmetic(self) -> bool:
        """Whether operations are priced, not synaptic operations."""
        return self.synop_scope == "arithmetic"

    def _twice(self, key: str, value: str) -> None:
        scope = (
            f'synop_scope = "{self.synop_scope}"' if key.removeprefix("prices.") not in self.included else "included"
        )
        self._refuse(key, f"be absent, for {scope} holds it already", value, "Move it to alternatives.")

    def _refuse(self, key: str, rule: str, value: object, remedy: str = "") -> None:
        raise ValueError(f"Chip {self.name}: {key} must {rule}; got {value}. {remedy}".rstrip())
