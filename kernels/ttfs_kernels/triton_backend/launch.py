"""`Launch`: a kernel call with grid and arguments. `Device`: the GPU or interpreter that runs it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ttfs_kernels.triton_backend.formulation import Chip
from ttfs_kernels.triton_backend.planning import Config
from ttfs_kernels.triton_backend.problem import Problem

SMALLEST_CAPABILITY = 80


class Device(NamedTuple):
    """The GPU, or interpreter, that a pass is planned for.

    Attributes:
        name: the GPU's name from its driver.
        chip: compilation target.
        processors: number of streaming multiprocessors or compute units.
    """

    name: str
    chip: Chip
    processors: int


@dataclass(frozen=True)
class Launch:
    """One kernel call; the same object is run on a GPU, interpreted, or only compiled.

    Attributes:
        kernel: Triton function.
        grid: number of programs on each axis.
        arguments: the kernel's arguments by name: tensors, numbers, compile-time constants, or tuples of these.
        num_warps, num_stages: as Triton takes them.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 1

    def run(self) -> None:
        """Launch on the current stream of the first tensor's device; do nothing if tensors have no memory.

        These are the fake tensors of PyTorch's compiler, which wants outputs allocated but not computed.
        """
        tensor = next(value for value in self.arguments.values() if isinstance(value, torch.Tensor))
        if tensor.untyped_storage().device.type == "meta":
            return
        # Triton launches on the current device, which need not be the tensor's.
        with torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext():
            self.kernel[self.grid](**self.arguments, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """Triton's options of the launch. Without fused multiply-add, the firing rule rounds as in PyTorch."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": False}

    @staticmethod
    def blocks(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], config: Config) -> Launch:
        """A launch with the blocks, warps and stages of a configuration."""
        sizes = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
        return Launch(kernel, grid, arguments | sizes, config.num_warps, config.num_stages)


# Whether kernels run in Triton's interpreter. Triton reads TRITON_INTERPRET when it is first imported; later changes of
# the variable have no effect.
INTERPRETING = not isinstance(tl.zeros, triton.JITFunction)

_devices: dict[torch.device, Device] = {}  # a plain dictionary: torch.compile traces through `unavailable`


def device_of(device: torch.device) -> Device:
    """The `Device` of a PyTorch device; anything but a GPU is the interpreter, planned for as an sm_90."""
    if device.type != "cuda":
        return Device("interpreter", Chip("cuda", 90), 4)
    if device not in _devices:
        properties = torch.cuda.get_device_properties(device)
        if torch.version.hip is not None:
            chip = Chip("hip", properties.gcnArchName.split(":")[0])
        else:
            chip = Chip("cuda", 10 * properties.major + properties.minor)
        _devices[device] = Device(properties.name, chip, properties.multi_processor_count)
    return _devices[device]


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why kernels cannot run on a device with a dtype, or None if they can. Triton must be installed."""
    if dtype == torch.float64:
        return "float64 has no Triton kernel; use float32, or the torch backend"
    if device.type not in ("cpu", "cuda"):
        return f"device {device.type!r} is not a CUDA or ROCm GPU"
    if device.type == "cpu" and not INTERPRETING:
        return "tensors are on the CPU, and TRITON_INTERPRET=1 was not set before the start"
    if INTERPRETING and dtype == torch.bfloat16:  # on a GPU too
        return "Triton's interpreter multiplies bfloat16 wrongly; use float16 or float32 there"
    if device.type == "cpu":
        return None
    chip = device_of(device).chip
    if chip.vendor == "cuda" and int(chip.architecture) < SMALLEST_CAPABILITY:
        return f"{chip} is older than sm_{SMALLEST_CAPABILITY}"
    return None


def precision_of(problem: Problem, device: torch.device) -> str:
    """Precision of a layer's products, "ieee" or "tf32", by PyTorch's switch for matrix products or convolutions."""
    vendor, architecture = device_of(device).chip
    if problem.dtype != torch.float32 or (vendor == "hip" and architecture != "gfx942"):  # no other AMD GPU has tf32
        return "ieee"
    cudnn: Any = torch.backends.cudnn
    switch = torch.backends.cuda.matmul if problem.is_matrix_product else cudnn.conv
    return "tf32" if switch.fp32_precision == "tf32" else "ieee"
