"""Which price matters: the total, with one price at a time at the end of its range."""

from __future__ import annotations

from dataclasses import dataclass

from ttfs_triton.hardware.energy.report import Report


@dataclass(frozen=True)
class Swing:
    """What one price does to the total. All energies are pJ.

    Attributes:
        price_name: key of `PRICES`, or "memory" for all its accesses together.
        low, high: the total with this price at its low and high end, all others nominal.
        nominal: the total.
    """

    price_name: str
    low: float
    nominal: float
    high: float

    @property
    def width(self) -> float:
        """How far the total moves."""
        return self.high - self.low


def sensitivity(report: Report, *, spread: float = 0.0) -> tuple[Swing, ...]:
    """One swing a price, the widest first; prices that move nothing are left out.

    Args:
        report: of any network.
        spread: relative range given to prices for which sources state none: 0.2 is ±20 %.
    Returns:
        Swings around `report.total`; empty if nothing has a price.
    Raises:
        ValueError: spread outside [0, 1].
    """
    if not 0 <= spread <= 1:
        raise ValueError(f"sensitivity: spread must be in [0, 1]; got {spread}. 0.2 is ±20 %.")
    total = report.total
    if total is None:
        return ()
    swings = []
    for name, energy in report.by_price().items():
        if energy is None:
            continue
        low, high = energy.low, energy.high
        if low == high:
            low, high = energy.nominal * (1 - spread), energy.nominal * (1 + spread)
        if high > low:
            nominal = total.nominal
            swings.append(Swing(name, nominal - energy.nominal + low, nominal, nominal - energy.nominal + high))
    return tuple(sorted(swings, key=lambda swing: -swing.width))
