"""Whether PyTorch's compiler fuses a run's passes over neurons, which is for CPUs: a GPU has kernels of its own."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from ttfs_kernels import fuse_passes
from ttfs_triton.nn.graph import NetworkGraph
from ttfs_triton.train.config import ConfigError

# A neuron's passes, forward and backward, take some 4 to 7 ns less when fused, on one core (AVX-512), at σ = 0 some 0.6
# to 3 ns; compiling them takes 10 to 30 s, the first time, at σ = 0 half. From so many neurons a run on (images times
# epochs times neurons) it pays.
LEAST_NEURONS = 10_000_000_000


def why_not_fused(device: torch.device) -> str | None:
    """Why passes cannot be fused; None if they can."""
    if device.type != "cpu":
        return "the device is no CPU"
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "there is no C++ compiler (g++ or clang)"
    return None


def is_worth_while(graph: NetworkGraph, images: int) -> bool:
    """Whether a run that trains on so many images, all epochs together, is long enough for compiling."""
    return images * sum(math.prod(stage.shape) for stage in graph.stages) >= LEAST_NEURONS


def choose_fusing(
    wanted: Literal["auto", "on", "off"],
    device: torch.device,
    graph: NetworkGraph,
    images: int,
    say: Callable[[str], None],
) -> bool:
    """Whether a run fuses its passes, and a line if it does, since its first steps take long.

    Args:
        wanted: auto: where it can be had and is worth while.
        device: of the run.
        graph: of the network.
        images: that the run trains on, all epochs together.
        say: shows a line.
    Raises:
        ConfigError: they are asked for and cannot be had.
    """
    if wanted == "off" or (wanted == "auto" and not is_worth_while(graph, images)):
        return False
    reason = why_not_fused(device)
    if wanted == "on" and reason is not None:
        raise ConfigError(f"fuse: on needs passes that can be fused, but {reason}; use auto or off.")
    if reason is None:
        say("passes over neurons are fused: the first steps wait for PyTorch's compiler")
    return reason is None


@contextmanager
def fused_passes(on: bool) -> Iterator[None]:
    """Within the block, layers on a CPU take fused passes, if `on`."""
    fuse_passes(on)
    try:
        yield
    finally:
        fuse_passes(False)
