"""Host's time for a layer by Triton: checks, autograd, plans and allocations, and launches of compiled kernels.

Without a GPU, Triton gets a stand-in for an H100's driver and stand-ins for kernels, which are neither compiled nor
run: the time ends where Triton's launcher would hand the arguments to the GPU's driver.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from timeit import Timer
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import _bench as bench
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver

from ttfs_kernels.triton import common

WARM_UP, BLOCKS, CALLS = 20, 25, 20


class _StandIn(CompiledKernel):
    """A compiled kernel that is launched as others, and does nothing."""

    def __init__(self) -> None:
        self.module, self.function, self.packed_metadata, self.name, self.src = self, 0, (), "", None
        self._run = lambda *_: None

    def __del__(self) -> None:
        """Unload nothing."""


@contextmanager
def absent_gpu() -> Iterator[None]:
    """A context in which layers on the CPU take the way of Triton's kernels, up to the launch."""

    def stand_in(kernel: triton.JITFunction, key: str, _: Any, device: int, *__: Any) -> Any:
        assert kernel.cache_key  # lists the global variables, which every launch compares
        return kernel.device_caches[device][0].setdefault(key, _StandIn())

    absent: Any = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda _: 0)
    absent.get_current_target = lambda: GPUTarget("cuda", 90, 32)
    driver.set_active(absent)
    with patch.object(triton.JITFunction, "_do_compile", stand_in), patch.object(common, "INTERPRETING", True):
        yield


def host_us(function: Callable[..., torch.Tensor], operands: tuple[torch.Tensor, ...]) -> list[float]:
    """Times in µs: a call without gradients, a call with gradients, and a call with its backward pass.

    A time is the mean of the quietest block of calls, as of `timeit`: other work on the machine only adds to it.
    """
    device, leaves = operands[0].device, [operand.detach().requires_grad_() for operand in operands]
    grad = torch.ones_like(function(*operands))
    runs: list[Callable[[], object]] = [
        torch.no_grad()(lambda: function(*leaves)),
        lambda: function(*leaves),
        lambda: torch.autograd.grad(function(*leaves), leaves, grad),
    ]
    us = []
    for run in runs:
        timer = Timer(run, setup=partial(bench.now, device))  # the GPU is idle, so that no launch waits
        timer.timeit(WARM_UP)
        us.append(min(timer.repeat(BLOCKS, CALLS)) / CALLS * 1e6)
    return us
