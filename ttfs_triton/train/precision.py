"""A CPU without instructions for bfloat16 takes it all the same, and emulates it: then training in it is hopeless.

PyTorch has no question that all processors answer rightly (AVX-512, AMX, AVX-VNNI, SVE, ...), so a product of matrices
is timed.
"""

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator

SIZE = 256  # of the matrices: a millisecond in float32 on one slow core
TIMES = 3
SLOW = 3.0  # with instructions for it, bfloat16 takes as long as float32 at most


def warn_of_emulation(accelerator: Accelerator, say: Callable[[str], None]) -> None:
    """A line, if the run is in bfloat16 on a CPU that only emulates it.

    Args:
        accelerator: of the run; its precision may come from `accelerate config`.
        say: shows a line.
    """
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "bf16":
        return
    ratio = bfloat16_cost()
    if ratio > SLOW:
        say(
            f"mixed_precision: this CPU emulates bf16, where a product of matrices takes {ratio:.0f} times as long as "
            "in float32; use --mixed-precision no"
        )


def bfloat16_cost() -> float:
    """How often a product of matrices takes float32's time in bfloat16, on this CPU with this process's threads."""
    return product_seconds(torch.bfloat16) / product_seconds(torch.float32)


def product_seconds(dtype: torch.dtype) -> float:
    """Seconds of one product of two matrices on the CPU, the least of some, since other work only makes it longer."""
    matrix, found = torch.ones(SIZE, SIZE, dtype=dtype), []
    for _ in range(1 + TIMES):  # the first finds a kernel
        begin = time.perf_counter()
        matrix @ matrix
        found.append(time.perf_counter() - begin)
    return min(found)
