"""A GPU that is not there: Triton compiles for it, and launches go all the way to the launcher, which notes them.

Tensors are on the CPU, and nothing is computed: this is for the time that a launch takes on the host, and for what
reaches the launcher. It stands in for Triton's driver, so it ends where the call into the GPU's own would begin.
"""

from typing import Any, NamedTuple

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ttfs_kernels import backends
from ttfs_kernels.triton_backend import launch
from ttfs_kernels.triton_backend.formulation import Chip

PROCESSORS = 132


class Launched(NamedTuple):
    """One launch: the kernel's name, its grid, and its arguments by name, tensors or addresses as they were given."""

    kernel: str
    grid: tuple[int, int, int]
    arguments: dict[str, Any]


launched: list[Launched] = []
listening = True


class Launcher:
    """What Triton calls last, with everything ready."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name, self.names = source.fn.__name__, source.fn.arg_names

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        if listening:
            arguments = dict(zip(self.names, rest[-len(self.names) :], strict=True))
            launched.append(Launched(self.name, (x, y, z), arguments))


class Utilities:
    """What Triton asks of a driver when it loads a kernel."""

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        return 1, 1, 32, 0, 1024

    def unload_module(self, module: int) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024, "multiprocessor_count": PROCESSORS}


class AbsentDriver:
    """Triton's driver of an H100."""

    utils, launcher_cls = Utilities(), Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def pretend() -> None:
    """From now on, kernels are launched on a GPU that is not there, for tensors on the CPU; `backend="triton"`."""
    driver.set_active(AbsentDriver())  # pyright: ignore[reportArgumentType]
    backends.why_no_triton = lambda *_: None
    launch._devices[torch.device("cpu")] = launch.Device("NVIDIA H100", Chip("cuda", 90), PROCESSORS)
