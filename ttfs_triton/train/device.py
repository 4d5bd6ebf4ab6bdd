"""What a run computes with: processes, device, precision, and passes that PyTorch's compiler fuses on a CPU."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

from ttfs_kernels import fuse_passes
from ttfs_kernels.backends import why_no_triton
from ttfs_triton.nn.graph import NetworkGraph
from ttfs_triton.train.config import ConfigError, TrainConfig

WORKERS_PER_CORE = 4  # more than that only takes memory, and thousands hang the machine
# A neuron's passes, forward and backward, take some 4 to 7 ns less when fused, on one core (AVX-512), at σ = 0 some 0.6
# to 3 ns; compiling them takes 10 to 30 s, the first time, at σ = 0 half. From so many neurons a run on (images times
# epochs times neurons) it pays.
LEAST_NEURONS = 10_000_000_000
SLOW = 3.0  # with instructions for it, bfloat16 takes as long as float32 at most


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Processes, device, precision and trackers of a run.

    Raises:
        ConfigError: a tracker is not installed; precision or backend cannot be had on the CPU; or too many workers.
    """
    known = [str(tracker) for tracker in get_available_trackers()]
    for tracker in config.trackers:
        if tracker not in known:
            raise ConfigError(
                f"trackers: {tracker} must be installed and known to accelerate; got only "
                f"{', '.join(known) or 'none'}. Try pip install {tracker}."
            )
    cpu = config.cpu or not torch.cuda.is_available()
    if cpu and config.mixed_precision == "fp16":
        raise ConfigError("mixed_precision: fp16 needs a GPU; use bf16 on the CPU.")
    most = max(64, WORKERS_PER_CORE * (os.cpu_count() or 1))
    if config.num_workers > most:
        raise ConfigError(f"num_workers must be at most {most} on this machine; got {config.num_workers}. Lower it.")
    device = torch.device("cpu" if cpu else "cuda")
    if config.backend == "triton" and (reason := why_no_triton(device, torch.float32)) is not None:
        raise ConfigError(f"backend: triton must be able to run here; {reason}. Use --backend torch or auto.")
    return Accelerator(
        cpu=cpu,
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers) or None,
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                # The network is the same in every step: buckets are laid out once, and gradients live in them.
                gradient_as_bucket_view=True,
                # PyTorch 2.13 asserts (reducer.cpp) if the first backward pass of a static graph is not exchanged.
                static_graph=config.gradient_accumulation == 1,
            )
        ],
        # Some trackers insist on a folder now; the run's own replaces it as soon as it is known.
        project_config=ProjectConfiguration(logging_dir="runs"),
    )


def warn_of_device(accelerator: Accelerator, say: Callable[[str], None]) -> None:
    """A line if fewer processes run than were asked for, and one if bfloat16 is only emulated.

    Args:
        accelerator: of the run; its processes and precision may come from `accelerate launch`.
        say: shows a line.
    """
    asked = os.environ.get("WORLD_SIZE") or os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE")
    # accelerate launch --cpu --num_processes 2 sets an address for two processes, and starts one.
    alone = asked is None and accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ
    if alone or accelerator.num_processes < int(asked or 1):
        say(
            f"warning: {accelerator.num_processes} of {asked or 'several'} processes that were asked for. "
            "On a CPU use torchrun --nproc_per_node N, or accelerate launch --multi_gpu --num_processes N."
        )
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        # PyTorch has no question that all processors answer rightly (AVX-512, AMX, AVX-VNNI, SVE, ...).
        ratio = product_seconds(torch.bfloat16) / product_seconds(torch.float32)
        if ratio > SLOW:
            say(
                f"mixed_precision: this CPU emulates bf16, where a product of matrices takes {ratio:.0f} times as long "
                "as in float32; use --mixed-precision no"
            )


def product_seconds(dtype: torch.dtype) -> float:
    """Seconds of one product of two matrices on the CPU, the least of some, since other work only makes it longer."""
    matrix, found = torch.ones(256, 256, dtype=dtype), []
    for _ in range(4):  # the first finds a kernel
        begin = time.perf_counter()
        torch.mm(matrix, matrix)
        found.append(time.perf_counter() - begin)
    return min(found)


def choose_fusing(config: TrainConfig, device: torch.device, graph: NetworkGraph, images: int) -> bool:
    """Whether a run fuses its passes over neurons, which is for CPUs: a GPU has kernels of its own.

    Args:
        config: `fuse`; auto: where it can be had and is worth while.
        device: of the run.
        graph: of the network.
        images: that the run trains on, all epochs together.
    Raises:
        ConfigError: they are asked for and cannot be had.
    """
    neurons = images * sum(math.prod(stage.shape) for stage in graph.stages)
    if config.fuse == "off" or (config.fuse == "auto" and neurons < LEAST_NEURONS):
        return False
    reason = _why_not_fused(device)
    if config.fuse == "on" and reason is not None:
        raise ConfigError(f"fuse: on needs passes that can be fused, but {reason}; use auto or off.")
    return reason is None


def _why_not_fused(device: torch.device) -> str | None:
    if device.type != "cpu":
        return "the device is no CPU"
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "there is no C++ compiler (g++ or clang)"
    return None


@contextmanager
def fused_passes(on: bool) -> Iterator[None]:
    """Within the block, layers on a CPU take fused passes, if `on`."""
    fuse_passes(on)
    try:
        yield
    finally:
        fuse_passes(False)
