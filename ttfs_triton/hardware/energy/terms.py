"""Energy of one sample: terms, each a count times a price, their sums, and what collects them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal

from ttfs_triton.hardware.counts.counts import Counts
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.prices import Price, Range, Status, weakest
from ttfs_triton.hardware.energy.run_options import RunOptions

TermKind = Literal["compute", "memory", "communication", "static"]
_CHIP = ("name", "description", "node_nm", "voltage_v", "synop_scope")


@dataclass(frozen=True)
class Term:
    """One line of an estimate.

    Attributes:
        layer: whose; "chip" for static power, "input" for spikes of the encoder.
        name: of the operation, in words.
        kind: "compute", "memory", "communication" or "static".
        count: operations a sample, or microseconds for static power; None if it is not known.
        price: of one, pJ or µW (which is pJ a microsecond); None if the chip states none.
        price_name: key of `PRICES`, or "memory".
        note: what is missing, if something is.
    """

    layer: str
    name: str
    kind: TermKind
    count: float | None
    price: Price | None
    price_name: str
    note: str = ""

    @property
    def energy(self) -> Range | None:
        """pJ a sample; None, which is not zero, if count or price is not known."""
        amount = None if self.price is None else self.price.amount
        return None if amount is None or self.count is None else amount.scaled(self.count)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; energies in pJ."""
        amount = None if self.price is None else self.price.amount
        return {
            "layer": self.layer,
            "term": self.name,
            "kind": self.kind,
            "count": self.count,
            "price": self.price_name,
            "price_pj": None if amount is None else amount.to_dict(),
            "energy_pj": None if self.energy is None else self.energy.to_dict(),
            "status": "unpublished" if self.price is None else self.price.status,
            "source": "" if self.price is None else self.price.source,
            "note": self.note or ("" if self.price is None else self.price.note),
        }


@dataclass(frozen=True)
class Estimate:
    """What a network would need for one sample. All energies are pJ.

    Sums have every price at its low end at once, at its nominal value, and at its high end. Terms without a price are
    in none of them, but in `unpriced`.

    Attributes:
        network: its name.
        implementation: how neurons, or the ANN, are computed.
        chip: whose prices were used.
        samples: that were counted; energies are of one.
        terms: in the order of the layers, static power last.
        assumptions: what the figures depend on, in sentences.
        warnings: what speaks against them, in sentences.
        latency_us: of a sample; None if not known.
    """

    network: str
    implementation: str
    chip: Chip
    samples: int
    terms: tuple[Term, ...]
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    latency_us: float | None = None

    @property
    def total(self) -> Range | None:
        """All terms that have a price; None if none has."""
        return _sum(self.terms)

    @property
    def compute_only(self) -> Range | None:
        """Arithmetic alone; None where a chip's price of a synaptic operation holds more than that."""
        return self.of_kind("compute") if self.chip.arithmetic else None

    @property
    def memory_included(self) -> Range | None:
        """Arithmetic and memory traffic; None if memory is left out or has no price."""
        if self.chip.holds("memory"):
            return self.of_kind("compute")
        return self.of_kind("compute", "memory") if self.of_kind("memory") else None

    def of_kind(self, *kinds: TermKind) -> Range | None:
        """The terms of some kinds; None if none of them has a price."""
        return _sum(term for term in self.terms if term.kind in kinds)

    @property
    def unpriced(self) -> tuple[Term, ...]:
        """Terms whose price or count is not known: they are in no sum."""
        return tuple(term for term in self.terms if term.energy is None)

    @property
    def status(self) -> Status | None:
        """The weakest status of the prices in the total; None if there are none."""
        return weakest(term.price.status for term in self.terms if term.energy is not None and term.price is not None)

    def by_layer(self) -> dict[str, Range | None]:
        """Energy of each layer, in order; None where no term of it has a price."""
        return self._by(lambda term: term.layer)

    def by_term(self) -> dict[str, Range | None]:
        """Energy of each kind of operation over all layers; None where it has no price."""
        return self._by(lambda term: term.name)

    def by_price(self) -> dict[str, Range | None]:
        """Energy that hangs on each price; None where there is none."""
        return self._by(lambda term: term.price_name)

    def _by(self, key: Callable[[Term], str]) -> dict[str, Range | None]:
        names = dict.fromkeys(key(term) for term in self.terms)
        return {name: _sum(term for term in self.terms if key(term) == name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """The estimate as JSON values; an unknown energy is None."""
        sums = {name: getattr(self, name) for name in ("compute_only", "memory_included", "total")}
        return {
            "network": self.network,
            "implementation": self.implementation,
            "chip": {key: getattr(self.chip, key) for key in _CHIP},
            "samples": self.samples,
            "energy_pj": {name: value.to_dict() if value else None for name, value in sums.items()},
            "by_layer_pj": {name: value.to_dict() if value else None for name, value in self.by_layer().items()},
            "status": self.status,
            "latency_us": self.latency_us,
            "unpriced": sorted({f"{term.name} ({term.price_name})" for term in self.unpriced}),
            "assumptions": list(self.assumptions),
            "warnings": list(self.warnings),
            "terms": [term.to_dict() for term in self.terms],
        }


class Terms:
    """Collects the terms of one estimate.

    Attributes:
        chip: whose prices count.
        options: how it runs.
        counts: of the network.
        weight_bits, state_bits: of the numbers in memory: those of the options, else the chip's, else the network's,
            else 8; states have 16 at least.
    """

    def __init__(self, chip: Chip, options: RunOptions, counts: Counts) -> None:
        bits = chip.bits or counts.weight_bits or 8
        self.chip, self.options, self.counts = chip, options, counts
        self.weight_bits = options.weight_bits or bits
        self.state_bits = options.state_bits or max(16, bits)
        self._terms: list[Term] = []
        self._largest: dict[str, float] = {}  # bytes of each layer's memory that no price covers

    def charge(self, layer: str, name: str, kind: TermKind, count: float | None, key: str, note: str = "") -> None:
        """Add a term, unless it counts nothing or other prices hold it."""
        if count != 0 and not self.chip.holds(key):
            price = self.chip.prices.get(key)
            if price is None or price.value is None:
                note = f"the chip states no price for {key}"
            self._terms.append(Term(layer, name, kind, count, price, key, note))

    def access(self, layer: str, name: str, count: float, numbers: float, bits: int) -> None:
        """Add reads or writes of a memory that holds so many numbers of so many bits."""
        if not self.options.memory or self.chip.holds("memory") or count == 0:
            return
        price: Price | None = None
        if self.chip.memory is not None:
            size_bytes = numbers * bits / 8
            price = self.chip.memory.access(size_bytes, bits)
            if size_bytes > self.chip.memory.largest_bytes:
                self._largest[layer] = max(size_bytes, self._largest.get(layer, 0.0))
        note = "" if price else "the chip states no price for memory"
        self._terms.append(Term(layer, name, "memory", count, price, "memory", note))

    def addresses(self, layer: str, count: float) -> None:
        """Add the additions that compute addresses, where they are charged."""
        if self.options.memory and self.chip.memory is not None and self.chip.memory.addressing:
            self.charge(layer, "addressing", "memory", count, "accumulate")

    def step_time(self, steps: int) -> float | None:
        """Microseconds of so many steps; None if neither the options nor the chip say how long one is."""
        fixed = self.chip.prices["step_time"].amount if "step_time" in self.chip.prices else None
        step_us = self.options.step_us
        if step_us is None and fixed is not None:
            step_us = fixed.nominal
        return None if step_us is None else step_us * steps

    def static_power(self, latency_us: float | None, remedy: str = "step_us") -> None:
        """Add leakage and idle power over the latency, unless other prices hold them; `remedy` makes it known."""
        prices, clock_mhz = self.chip.prices, self.options.clock_mhz
        note = "" if latency_us is not None else f"the latency is not known: give {remedy}"
        if "leakage_power" in prices or "idle_power" not in prices:
            self.charge("chip", "leakage", "static", latency_us, "leakage_power", note)
        idle = prices.get("idle_power")
        if idle is None or idle.amount is None or self.chip.holds("idle_power"):
            return
        clock = prices["clock"].amount if "clock" in prices else None
        if clock_mhz is None and clock is not None:
            clock_mhz = clock.nominal
        if clock_mhz is None:
            price, note = None, note or "the clock is not known: give clock_mhz"
        else:
            power, about = idle.amount.scaled(clock_mhz), f"{idle} at {clock_mhz:g} MHz"
            low, nominal, high = power.low, power.nominal, power.high
            price = Price(nominal, low, high, unit="µW", status=idle.status, source=idle.source, note=about)
        self._terms.append(Term("chip", "idle power", "static", latency_us, price, "idle_power", note))

    def estimate(
        self, network: str, implementation: str, latency_us: float | None, assumptions: Sequence[str]
    ) -> Estimate:
        """All terms so far, with what holds for every estimate on this chip, and where the network does not fit."""
        chip = self.chip
        lines = [*assumptions, f"{chip.name}: {chip.description}; a synaptic operation is priced as {chip.synop_scope}"]
        if not self.options.memory:
            lines.append("memory traffic is left out")
        elif chip.holds("memory"):
            lines.append(
                "memory traffic is inside the price of a synaptic operation: compute alone cannot be told apart"
            )
        elif chip.memory is not None:
            packing = "numbers packed into words" if chip.memory.packed else "one access a number"
            bits = f"{self.weight_bits}-bit weights, {self.state_bits}-bit states"
            lines.append(f"memory of each layer: {bits}, {packing}")
        total = self.counts.total()
        warnings = chip.exceeded(total["neurons"], total["synapses"], self.weight_bits)
        for layer, size in self._largest.items():
            assert chip.memory is not None
            largest = f"the largest memory that {chip.name} prices ({chip.memory.largest_bytes / 2**20:g} MB)"
            warnings.append(f"{layer}: {size / 2**20:,.1f} MB exceed {largest}")
        return Estimate(
            network=network,
            implementation=implementation,
            chip=chip,
            samples=self.counts.samples,
            terms=tuple(self._terms),
            assumptions=(*lines, *chip.notes),
            warnings=tuple(warnings),
            latency_us=latency_us,
        )


def _sum(terms: Iterable[Term]) -> Range | None:
    energies = [term.energy for term in terms if term.energy is not None]
    return reduce(add, energies) if energies else None
