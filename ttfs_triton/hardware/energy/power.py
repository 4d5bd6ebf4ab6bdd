"""Static power: over the latency of a sample, and at a rate of synaptic operations."""

from __future__ import annotations

from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.ledger import Ledger, Term
from ttfs_triton.hardware.energy.prices import Price, Range
from ttfs_triton.hardware.energy.run_options import RunOptions


def latency(chip: Chip, options: RunOptions, windows: int) -> float | None:
    """Microseconds a sample: as given, or windows of steps; None if the duration of a step is not known."""
    if options.latency_us is not None or options.steps is None or options.implementation == "closed_form":
        return options.latency_us
    return step_time(chip, options.step_us, options.steps * windows)


def step_time(chip: Chip, step_us: float | None, steps: int) -> float | None:
    """Microseconds of so many steps; None if neither the caller nor the chip says how long one is."""
    fixed = chip.prices["step_time"].amount if "step_time" in chip.prices else None
    if step_us is None and fixed is not None:
        step_us = fixed.nominal
    return None if step_us is None else step_us * steps


def static_power(ledger: Ledger, latency_us: float | None, clock_mhz: float | None, remedy: str = "step_us") -> None:
    """Charge leakage and idle power over the latency, unless other prices hold them; `remedy` makes it known."""
    prices, note = ledger.chip.prices, "" if latency_us is not None else f"the latency is not known: give {remedy}"
    if "leakage_power" in prices or "idle_power" not in prices:
        ledger.charge("chip", "leakage", "static", latency_us, "leakage_power", note)
    idle = prices.get("idle_power")
    if idle is None or idle.amount is None or ledger.chip.holds("idle_power"):
        return
    clock = prices["clock"].amount if "clock" in prices else None
    clock_mhz = clock_mhz if clock_mhz is not None else None if clock is None else clock.nominal
    price, missing = None, note or "the clock is not known: give clock_mhz"
    if clock_mhz is not None:
        power = idle.amount.scaled(clock_mhz)
        about = f"{idle} at {clock_mhz:g} MHz"
        price = Price(power.nominal, power.low, power.high, "µW", idle.status, idle.source, about)
        missing = note
    ledger.terms.append(Term("chip", "idle power", "static", latency_us, price, "idle_power", missing))


def power_uw(chip: Chip, *, synaptic_operations_per_second: float, clock_mhz: float | None = None) -> Range:
    """Power of a chip at a rate of synaptic operations: leakage + idle · f + energy · rate.

    Args:
        chip: one whose synaptic operation has a price.
        synaptic_operations_per_second: rate.
        clock_mhz: Default: the chip's.
    Returns:
        Microwatts, of those terms that have a price.
    Raises:
        ValueError: the chip has no price of a synaptic operation.
    """
    synop = chip.prices["synop"].amount if "synop" in chip.prices else None
    if synop is None:
        raise ValueError(
            f"power_uw: chip must price a synaptic operation; got {chip.name}. Its prices are of arithmetic."
        )
    ledger = Ledger(chip, memory=False, weight_bits=8, state_bits=16)
    static_power(ledger, latency_us=1.0, clock_mhz=clock_mhz)
    total = synop.scaled(synaptic_operations_per_second * 1e-6)  # pJ/op · op/s = 1e-6 µW
    for term in ledger.terms:
        total = total + (term.energy or Range(0.0, 0.0, 0.0))
    return total
