"""Host's time for a layer by Triton: checks, autograd, plans and allocations, and launches of compiled kernels.

Without a GPU, Triton gets a stand-in for an H100's driver and stand-ins for kernels, which are neither compiled nor
run: the time ends where Triton's launcher would hand the arguments to the GPU's driver.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
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

WARM_UP, CALLS = 20, 200


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
    """Median times in µs: a call without gradients, a call with gradients, and a call with its backward pass."""
    device, leaves = operands[0].device, [operand.detach().requires_grad_() for operand in operands]
    grad = torch.ones_like(function(*operands))
    runs: list[Callable[[], object]] = [
        torch.no_grad()(lambda: function(*leaves)),
        lambda: function(*leaves),
        lambda: torch.autograd.grad(function(*leaves), leaves, grad),
    ]
    us = []
    for run in runs:
        times = []
        for _ in range(WARM_UP + CALLS):
            bench.now(device)  # the GPU is idle, so that no launch waits
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e6)
        us.append(median(times[WARM_UP:]))
    return us
