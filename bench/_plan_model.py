"""How long a launch takes on a GPU that is not there: arithmetic over its programs, operations and bytes.

The model, H100's numbers by default:

- Products run at what libraries reach there, 450 TFLOP/s, when every processor is busy: half of what its tensor cores
  can at 1.65 GHz. A launch takes as long as the processor with the most programs: waves = ceil(programs / 132). Longer
  programs start first, so that the average counts, unless one is longer than all that a processor has.
  Ours and the libraries' are given the same speed, so that what differs is operations and waves.
- Libraries cut into tiles of 128×128. They split the reduction of a weight's gradient until all processors are busy.
- Memory moves 2.8 TB/s; every operand is read once, every result written once. A launch takes the longer of both.
- A loop that adds up what is far apart in memory takes 200 cycles a step: a memory latency, four loads under way.
- No launch takes less than 2 µs.

Left out: host time, launches that wait for it, caches between launches, power limits, readout and loss. The
second-level cache (5.5 TB/s) is not in the time, but stands beside it for our products: where it is the longer, blocks
are too small.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

CYCLES_PER_STEP = 200  # of a loop over memory
PROGRAMS_PER_PROCESSOR = 16  # element-wise kernels, of four warps


@dataclass(frozen=True)
class Machine:
    """A GPU as the model sees it."""

    name: str = "h100"  # of the file that the plan is written to
    processors: int = 132  # streaming multiprocessors
    clock_ghz: float = 1.65  # under load
    product_tflops: float = 450.0  # of products in 16 bits when every processor is busy
    memory_tb_s: float = 2.8  # that the memory moves
    cache_tb_s: float = 5.5  # that the second-level cache moves
    shortest_us: float = 2.0  # no launch takes less
    library_tile: int = 128  # side of blocks of results of library calls; smaller ones fill small layers better


@dataclass(frozen=True)
class Cost:
    """What some launches cost, one after the other."""

    launches: int = 0
    programs: int = 0  # of the launch with the most operations, or the most bytes if there are none
    waves: int = 0  # of these programs on the machine
    executed: int = 0  # floating point operations that are given to tensor cores
    dense: int = 0  # those of a dense pass
    moved: int = 0  # bytes
    us: float = 0.0  # microseconds of the model
    cache_us: float = 0.0  # microseconds that the second-level cache would take for the products
    limit: str = ""  # of the longest launch: "products", "memory", "serial" or "launch"

    def __add__(self, other: "Cost") -> "Cost":
        main = max(self, other, key=lambda cost: (cost.executed, cost.moved))
        longest = max(self, other, key=lambda cost: cost.us)
        names = ("launches", "executed", "dense", "moved", "us", "cache_us")
        sums: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Cost(programs=main.programs, waves=main.waves, limit=longest.limit, **sums)


def products(
    machine: Machine,
    programs: int,
    executed: int,
    dense: int,
    moved: int,
    *,
    longest: int = 0,
    cache_bytes: float = 0.0,
) -> Cost:
    """A launch of products; `longest` is the operations of its longest program, 0 if all are alike."""
    waves = math.ceil(programs / machine.processors)
    share = max(waves * executed / max(1, programs), longest)
    product_us = share * machine.processors / machine.product_tflops / 1e6
    cost = Cost(1, programs, waves, executed, dense, moved, cache_us=cache_bytes / machine.cache_tb_s / 1e6)
    return _limited(machine, cost, products=product_us)


def library_products(machine: Machine, rows: int, columns: int, flops: int, moved: int, *, split: bool = False) -> Cost:
    """The same in a library, in tiles; `split` if its reduction is split until all processors are busy."""
    tiles = math.ceil(rows / machine.library_tile) * math.ceil(columns / machine.library_tile)
    # A reduction can be cut so finely that the last wave is full, too.
    programs = math.ceil(tiles / machine.processors) * machine.processors if split else tiles
    return products(machine, programs, flops, flops, moved)


def elementwise(machine: Machine, moved: int, programs: int | None = None, steps: int = 1) -> Cost:
    """A launch that computes next to nothing: `steps` of a serial loop in each program (default: as many as fill)."""
    slots = machine.processors * PROGRAMS_PER_PROCESSOR
    programs = slots if programs is None else programs
    serial_us = math.ceil(programs / slots) * steps * CYCLES_PER_STEP / machine.clock_ghz / 1e3
    cost = Cost(1, programs, math.ceil(programs / machine.processors), moved=moved)
    return _limited(machine, cost, serial=serial_us)


def _limited(machine: Machine, cost: Cost, products: float = 0.0, serial: float = 0.0) -> Cost:
    """A launch with its time, the longest of these."""
    limits = {"products": products, "memory": cost.moved / machine.memory_tb_s / 1e6, "serial": serial}
    limits["launch"] = machine.shortest_us
    limit = max(limits, key=lambda name: limits[name])
    return replace(cost, us=limits[limit], limit=limit)
