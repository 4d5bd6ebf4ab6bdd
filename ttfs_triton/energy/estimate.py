"""Energy estimates: a sample's energy as a sum of terms, a term being a count times a price; options of estimates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, Literal, NamedTuple

from pydantic import dataclasses
from pydantic_core import to_jsonable_python

from ttfs_triton.energy.chip import STRICT, Chip, Number, Price, Range, Status, Whole, weakest
from ttfs_triton.energy.counts import Counts, LayerActivity

TermKind = Literal["compute", "memory", "communication", "static"]
_CHIP = ("name", "description", "node_nm", "voltage_v", "synop_scope")


@dataclasses.dataclass(frozen=True, config=STRICT)
class RunOptions:
    """Options of `estimate` and `dense_ann`. The counts say which neurons and readout the network has.

    Attributes:
        steps: time steps in a window.
        gating: whether a neuron sleeps before its first input spike and after its spike. Counts without the time of
            first inputs (`LayerCounts.driven_time`) give an upper bound.
        activity: the neurons' work in the simulation that made the counts; None: computed from the counts.
        state_bits: bits of a slope or potential in memory. Default: the counts', or those of a weight, at least 16.
        step_us: duration of a step in microseconds, for static power. Default: the chip's, if it fixes one.
    """

    steps: Whole
    gating: bool = True
    activity: tuple[LayerActivity, ...] | None = None
    state_bits: Whole | None = None
    step_us: Number | None = None


class Run(NamedTuple):
    """Counts of a network and the options to price them with; after a simulation, `options.activity` is set."""

    counts: Counts
    options: RunOptions


@dataclass(frozen=True)
class Term:
    """One line of an estimate.

    Attributes:
        layer: name of the layer; "chip" for static power, "input" for spikes of the encoder.
        name: the operation in words.
        kind: "compute", "memory", "communication" or "static".
        count: operations of a sample; for leakage microseconds, for idle power clock cycles; None if unknown.
        price: price of one operation, microsecond or cycle; None if the chip states none.
        price_name: key of `PRICES`, or "memory".
        note: reason why the price or the count is unknown; empty if both are known.
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
        """Energy of a sample, pJ; None, not zero, if count or price is unknown."""
        amount = None if self.price is None else self.price.amount
        return None if amount is None or self.count is None else amount.scaled(self.count)

    @property
    def status(self) -> Status:
        """Status of the price."""
        return "unpublished" if self.price is None else self.price.status

    def to_dict(self) -> dict[str, Any]:
        """The term as JSON values; energies in pJ."""
        values = {
            "layer": self.layer,
            "term": self.name,
            "kind": self.kind,
            "count": self.count,
            "price": self.price_name,
            "price_pj": None if self.price is None else self.price.amount,
            "energy_pj": self.energy,
            "status": self.status,
            "source": "" if self.price is None else self.price.source,
            "note": self.note or ("" if self.price is None else self.price.note),
        }
        return to_jsonable_python(values)


@dataclass(frozen=True)
class Estimate:
    """Energy of one sample of a network, in pJ.

    A sum is a range: all prices at their low ends, at their nominal values, and at their high ends. Terms without a
    price or count are in no sum; `unpriced` has them.

    Attributes:
        implementation: how neurons, or the ANN, are computed.
        samples: number of samples counted; energies are for one sample.
        terms: terms in the order of the layers, static power last.
        assumptions: assumptions on which the figures depend, in sentences.
        warnings: where the network does not fit the chip or its prices, in sentences.
        latency_us: duration of a sample, microseconds; None if unknown.
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
        """Sum of all terms that have a price; None if no term has one."""
        return _sum(self.terms)

    @property
    def compute_only(self) -> Range | None:
        """Sum of arithmetic alone; None if the chip's price of a synaptic operation includes more than arithmetic."""
        return self.of_kind("compute") if self.chip.arithmetic else None

    @property
    def memory_included(self) -> Range | None:
        """Sum of arithmetic and memory traffic; None if memory has no price."""
        if self.chip.holds("memory"):
            return self.of_kind("compute")
        return self.of_kind("compute", "memory") if self.of_kind("memory") else None

    def of_kind(self, *kinds: TermKind) -> Range | None:
        """Sum of the terms of the given kinds; None if no such term has a price."""
        return _sum(term for term in self.terms if term.kind in kinds)

    @property
    def unpriced(self) -> tuple[Term, ...]:
        """Terms whose price or count is unknown; they are in no sum."""
        return tuple(term for term in self.terms if term.energy is None)

    @property
    def status(self) -> Status | None:
        """Weakest status of the prices in the total; None if it has no prices."""
        return weakest(term.status for term in self.terms if term.energy is not None)

    def parts(self, key: Literal["layer", "name"]) -> dict[str, Estimate]:
        """Estimates by layer, or by operation (`key` "name") over all layers, in order."""
        parts: dict[str, list[Term]] = {}
        for term in self.terms:
            parts.setdefault(getattr(term, key), []).append(term)
        return {name: replace(self, terms=tuple(terms)) for name, terms in parts.items()}

    def by_layer(self) -> dict[str, Range | None]:
        """Energies by layer, in order; None for a layer of which no term has a price."""
        return {name: part.total for name, part in self.parts("layer").items()}

    def to_dict(self) -> dict[str, Any]:
        """The estimate as JSON values; an unknown energy is None."""
        values = {
            "network": self.network,
            "implementation": self.implementation,
            "chip": {key: getattr(self.chip, key) for key in _CHIP},
            "samples": self.samples,
            "energy_pj": {name: getattr(self, name) for name in ("compute_only", "memory_included", "total")},
            "by_layer_pj": self.by_layer(),
            "status": self.status,
            "latency_us": self.latency_us,
            "unpriced": sorted({f"{term.name} ({term.price_name})" for term in self.unpriced}),
            "assumptions": self.assumptions,
            "warnings": self.warnings,
            "terms": [term.to_dict() for term in self.terms],
        }
        return to_jsonable_python(values)


def _sum(terms: Iterable[Term]) -> Range | None:
    energies = [term.energy for term in terms if term.energy is not None]
    return reduce(add, energies) if energies else None
