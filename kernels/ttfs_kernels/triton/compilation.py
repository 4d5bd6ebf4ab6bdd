"""Compiles all kernels of a training step in parallel before the step, which would compile them one after another."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._pytree import tree_map
from triton import AsyncCompileMode
from triton.runtime.jit import MockTensor

from ttfs_kernels.triton.common import INTERPRETING, planned

MOST_THREADS = 32


def compile_kernels(
    network: nn.Module, images: Tensor, context: AbstractContextManager[Any], say: Callable[[str], None]
) -> None:
    """Compile the kernels of a forward and backward pass for the current device, on all cores; nothing is computed.

    The passes run on tensors without memory, and only plan launches. Triton's compiler releases Python's lock while it
    optimises and assembles. A kernel in Triton's cache is only loaded. The step itself reports what cannot be compiled.

    Args:
        network: the network, in training mode. It does not change.
        images: a micro-batch; only its shape, dtype, layout and device are read.
        context: the context in which the step runs, such as autocast.
        say: prints a line.
    """
    if INTERPRETING:
        return
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    tensors: dict[str, Tensor] = {
        name: fake.from_tensor(t) for name, t in chain(network.named_parameters(), network.named_buffers())
    }
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun; all compile the same kernels
    threads = max(1, min(MOST_THREADS, (os.cpu_count() or 1) // processes))
    try:
        with planned() as launches, fake, context:
            functional_call(network, tensors, fake.from_tensor(images)).sum().backward()
        with ThreadPoolExecutor(threads) as pool, AsyncCompileMode(pool, ignore_errors=True) as mode:
            for kernel, grid, values, options in launches:
                # Triton takes tensors without memory for aligned, as PyTorch's allocations are.
                values = tree_map(lambda one: MockTensor(one.dtype) if isinstance(one, Tensor) else one, values)
                kernel.warmup(*values, grid=grid, **options)
            if mode.raw_futures:
                say(f"Triton compiles {len(mode.raw_futures)} kernels, {threads} at a time")
    except Exception as error:  # compiling ahead only saves time: a user's module may read values, a driver may refuse
        say(f"Triton compiles kernels one after another: {(str(error).strip() or repr(error)).splitlines()[0]}")
