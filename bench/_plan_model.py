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
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A GPU as the model sees it.

    Attributes:
        name: of the file that the plan is written to.
        processors: streaming multiprocessors.
        clock_ghz: under load.
        product_tflops: of products in 16 bits when every processor is busy.
        memory_tb_s: that the memory moves.
        cache_tb_s: that the second-level cache moves.
        shortest_us: no launch takes less.
        library_tile: side of the blocks of results of library calls; smaller ones would fill small layers better.
    """

    name: str = "h100"
    processors: int = 132
    clock_ghz: float = 1.65
    product_tflops: float = 450.0
    memory_tb_s: float = 2.8
    cache_tb_s: float = 5.5
    shortest_us: float = 2.0
    library_tile: int = 128


CYCLES_PER_STEP = 200  # of a loop over memory
PROGRAMS_PER_PROCESSOR = 16  # element-wise kernels, of four warps


@dataclass(frozen=True)
class Cost:
    """What some launches cost, one after the other.

    Attributes:
        launches: number of them.
        programs: of the launch with the most operations, or the most bytes if there are none; its waves on the machine.
        executed, dense: floating point operations; those that are given to tensor cores, and those of a dense pass.
        moved: bytes.
        us: microseconds of the model.
        cache_us: microseconds that the second-level cache would take for the products.
        limit: of the longest launch: "products", "memory", "serial" or "launch".
    """

    launches: int = 0
    programs: int = 0
    waves: int = 0
    executed: int = 0
    dense: int = 0
    moved: int = 0
    us: float = 0.0
    cache_us: float = 0.0
    limit: str = ""

    def __add__(self, other: "Cost") -> "Cost":
        main = max(self, other, key=lambda cost: (cost.executed, cost.moved))
        longest = max(self, other, key=lambda cost: cost.us)
        return Cost(
            self.launches + other.launches,
            main.programs,
            main.waves,
            self.executed + other.executed,
            self.dense + other.dense,
            self.moved + other.moved,
            self.us + other.us,
            self.cache_us + other.cache_us,
            longest.limit,
        )

    def times(self, count: int) -> "Cost":
        """The same launches `count` times."""
        return sum((self for _ in range(count)), Cost())


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
    return _launch(machine, programs, waves, executed, dense, moved, product_us, 0.0, cache_bytes)


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
    waves = math.ceil(programs / slots)
    serial_us = waves * steps * CYCLES_PER_STEP / machine.clock_ghz / 1e3
    return _launch(machine, programs, math.ceil(programs / machine.processors), 0, 0, moved, 0.0, serial_us, 0.0)


def _launch(
    machine: Machine,
    programs: int,
    waves: int,
    executed: int,
    dense: int,
    moved: int,
    product_us: float,
    serial_us: float,
    cache_bytes: float,
) -> Cost:
    limits = {
        "products": product_us,
        "memory": moved / machine.memory_tb_s / 1e6,
        "serial": serial_us,
        "launch": machine.shortest_us,
    }
    limit = max(limits, key=lambda name: limits[name])
    cache_us = cache_bytes / machine.cache_tb_s / 1e6
    return Cost(1, programs, waves, executed, dense, moved, limits[limit], cache_us, limit)
