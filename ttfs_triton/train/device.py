"""Device of a run: precision, fused passes, memory, CUDA graphs; signals, and what its processes exchange."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from timeit import repeat
from types import FrameType
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, ProjectConfiguration
from torch import nn
from torch.optim import Optimizer

from ttfs_kernels.checks import why_no_triton
from ttfs_triton.evaluate import sum_over_processes
from ttfs_triton.evaluate.batches import Batch
from ttfs_triton.nn.graph import NetworkGraph
from ttfs_triton.nn.weighted import WeightedLayer
from ttfs_triton.train.config import ConfigError, TrainConfig

# Fusing pays off above this product of images, epochs and neurons. On one core (AVX-512) it saves 4 to 7 ns per neuron
# in forward and backward pass (at σ = 0, 0.6 to 3 ns). The first compilation takes 10 to 30 s (at σ = 0, half of that).
LEAST_NEURONS = 10_000_000_000
SHARDED = ("FSDP", "DeepSpeed", "Megatron-LM")  # these divide the weights, which are clipped and saved as a whole here
SLOW = 3.0  # least ratio of times, bfloat16 over float32, on a CPU that emulates bfloat16; on others it is at most 1

# Parameters of mallopt(3), from malloc.h, and the largest values that the library itself chooses for large blocks.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_AFTERWARDS = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}

# Steps before the capture. DistributedDataParallel times its first ten steps, and rearranges its buckets in the first.
WARM_UP = 3
WARM_UP_DISTRIBUTED = 11

_OF_A_RUN = "_of_a_run"  # key in accelerate's shared state


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The Accelerator of a run, with its processes, device, precision and trackers."""
    for name in SHARDED:  # accelerate sets these variables itself if a program gives it a plugin
        if os.environ.get(f"ACCELERATE_USE_{name.replace('-', '_').upper()}", "").lower() == "true":
            raise ConfigError(
                f"make_accelerator: every process must hold the whole network; got {name}, which divides it. Use "
                "accelerate launch --multi_gpu, which trains copies of it on shares of every batch."
            )
    available = [str(tracker) for tracker in get_available_trackers()]
    for tracker in config.trackers:
        if tracker not in available:
            raise ConfigError(
                f"trackers: {tracker} must be installed, and accelerate must support it; got only "
                f"{', '.join(available) or 'none'}. Try pip install {tracker}."
            )
    cpu = config.cpu or not torch.cuda.is_available()
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision == "auto":
        precision = "no" if cpu and emulates_bfloat16() else "bf16"
    if precision == "fp8" or (cpu and precision == "fp16"):
        raise ConfigError(f"mixed_precision: {precision} cannot run here, and fp16 needs a GPU; use bf16 or no.")
    if AcceleratorState._shared_state.get(_OF_A_RUN):
        # accelerate would keep the precision and device of an earlier run in this process.
        AcceleratorState._reset_state(reset_partial_state=PartialState().num_processes == 1)
    first = not AcceleratorState._shared_state  # else the Accelerator of the program decides, and stays usable
    device = torch.device("cpu" if cpu else "cuda")
    if config.backend == "triton" and (reason := why_no_triton(device, torch.float32)) is not None:
        raise ConfigError(f"backend: triton must be able to run here; {reason}. Use --backend torch or auto.")
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=config.mixed_precision and precision,
        log_with=list(config.trackers) or None,
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                # The network is the same in every step: buckets are laid out once, and gradients live in them.
                gradient_as_bucket_view=True,
                # PyTorch 2.13 asserts (reducer.cpp) if the first backward pass of a static graph is not exchanged.
                static_graph=config.gradient_accumulation == 1,
            ),
            InitProcessGroupKwargs(timeout=timedelta(hours=2)),  # the others wait while one process checks all images
        ],
        # Some trackers need a folder now; the run's folder replaces it later.
        project_config=ProjectConfiguration(logging_dir="runs"),
    )
    if first:
        AcceleratorState._shared_state[_OF_A_RUN] = True
    return accelerator


def emulates_bfloat16() -> bool:
    """Whether a product of matrices takes much longer in bfloat16 than in float32, since the CPU emulates bfloat16."""
    # This is measured, since PyTorch cannot tell for all processors (AVX-512, AMX, AVX-VNNI, SVE, ...).
    full = torch.ones(256, 256)  # the first product looks for a kernel
    narrow, wide = (min(repeat(partial(torch.mm, a, a), number=1, repeat=4)) for a in (full.bfloat16(), full))
    return narrow > SLOW * wide


def choose_fusing(config: TrainConfig, device: torch.device, graph: NetworkGraph, images: int) -> bool:
    """Whether a run on a CPU fuses its passes over neurons; `images` is the number of images in all epochs together."""
    neurons = images * sum(math.prod(stage.shape) for stage in graph.stages)
    if config.fuse == "off" or (config.fuse == "auto" and neurons < LEAST_NEURONS):
        return False
    if device.type == "cpu":
        from torch._inductor import cpp_builder, exc

        with suppress(exc.InvalidCxxCompiler):
            cpp_builder.get_cpp_compiler()
            return True
    if config.fuse == "on":
        raise ConfigError("fuse: on needs a CPU and a C++ compiler (g++ or clang); use auto or off.")
    return False


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within the `with` block, this process keeps the memory that it frees, if its C library can."""
    # The GNU C library returns large blocks to the system at once, and the system clears the next step's blocks page by
    # page: for a VGG16 with batches of 128, this takes two fifths of the time outside contractions.
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    mallopt: Callable[[int, int], int] | None = getattr(library, "mallopt", None)  # musl has none
    if library is None or mallopt is None:
        yield
        return
    try:
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_MMAP_MAX, 0)
        yield
    finally:
        for parameter, value in _AFTERWARDS.items():
            mallopt(parameter, value)
        library.malloc_trim(0)


def choose_graphs(
    config: TrainConfig,
    accelerator: Accelerator,
    graph: NetworkGraph,
    say: Callable[[str], None],
    teacher: NetworkGraph | None = None,
) -> CudaGraphs | None:
    """The CUDA graphs of a run's device; None, after a line that says why, if steps are not captured."""
    on_grid = [(net.grid, net) for net in (graph, teacher) if net is not None and net.grid is not None]
    waiting = [net for grid, net in on_grid if not grid.weight_bits or any(stage.skip for stage in net.stages)]
    if config.cuda_graph == "off":
        return None
    if accelerator.device.type != "cuda":
        reason = "the device is not a GPU"
    elif not torch.backends.cuda.is_built():
        reason = "this PyTorch is built without CUDA"
    elif accelerator.num_processes > 1 and torch.distributed.get_backend() != "nccl":
        reason = f"{torch.distributed.get_backend()} cannot be captured, only nccl"
    elif waiting or (graph.grid and config.weight_noise):
        reason = "on a grid, layers without weight_bits, with skips or with weight noise wait for their weights"
    else:
        return CudaGraphs(accelerator.device)
    if config.cuda_graph == "on":
        raise ConfigError(f"cuda_graph: on needs steps that can be captured, but {reason}; use auto or off.")
    say(f"no CUDA graph: {reason}")
    return None


class CudaGraphs:
    """Captures CUDA graphs on a device, in a separate stream."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run the `with` block on the capture stream, between earlier and later work, as autograd remembers streams."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture work without doing it, and return a function that does it. Other threads may go on working."""
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.stream.device)
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError:  # PyTorch leaves the stream current, and the random numbers in the capture
            torch.cuda.set_stream(before)
            generator = torch.cuda.default_generators[self.stream.device.index]
            generator.graphsafe_set_state(generator.clone_state())
            raise
        return lambda kept=work: graph.replay()  # the graph goes on reading tensors that only `work` may hold


class GraphError(RuntimeError):
    """Work could not be captured in a CUDA graph."""


class GraphedStep:
    """A step that is captured in a CUDA graph after its warm-up, and replayed from then on: one launch for hundreds.

    All steps must have micro-batches of the same shapes. Steps that count spikes or begin an average run without the
    graph. A captured step cannot read numbers on the host: learning rates are tensors, and the caller counts the steps.
    A capture executes nothing, and the steps before it are steps of the run, so weights are the same with and without a
    graph. `update` makes a step. With `required`, a step that cannot be captured is an error.
    """

    def __init__(
        self,
        update: Callable[..., None],
        graphs: CudaGraphs,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Optimizer,
        required: bool,
        say: Callable[[str], None],
    ) -> None:
        self.update, self.graphs, self.accelerator, self.optimizer = update, graphs, accelerator, optimizer
        self.required, self.say = required or accelerator.num_processes > 1, say
        self.replay: Callable[[], None] | None = None
        self._inputs: list[Batch] = []
        distributed = accelerator.num_processes > 1
        if distributed:  # the model's logging would wait for the device every hundred steps, also during a capture
            model._set_ddp_runtime_logging_sample_rate(2**31 - 1)  # type: ignore[operator]
        self._warm_up = self._steps_before = WARM_UP_DISTRIBUTED if distributed else WARM_UP
        self._failed = False
        # PyTorch's fused kernels read a rate as float32 on CUDA, and as float64 on the CPU.
        dtype = torch.float32 if accelerator.device.type == "cuda" else torch.float64
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros((), dtype=dtype, device=accelerator.device)

    def __call__(self, micro_batches: Sequence[Batch], *, sampled: bool = False, first: bool = False) -> None:
        """Make the step, as `update` does."""
        if sampled or first or self._failed:
            self.update(micro_batches, sampled=sampled, first=first)
        elif self._warm_up > 0:
            self._warm_up -= 1
            with self.graphs.aside():
                self.update(micro_batches)
        else:
            if self.replay is None:
                self._capture(micro_batches)
            if self.replay is None:
                self.update(micro_batches)
                return
            for (images, labels), (graph_images, graph_labels) in zip(micro_batches, self._inputs, strict=True):
                graph_images.copy_(images, non_blocking=True)
                graph_labels.copy_(labels, non_blocking=True)
            self.replay()

    def forget(self) -> None:
        """Warm up and capture anew, since the step launches other kernels from now on, which a capture cannot load."""
        self.replay, self._inputs, self._warm_up = None, [], self._steps_before

    def _capture(self, micro_batches: Sequence[Batch]) -> None:
        # `clone` keeps channels last; for another memory format, other kernels would be captured.
        self._inputs = [(images.clone(), labels.clone()) for images, labels in micro_batches]
        # The graph's gradients are allocated in the graph's memory.
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with _capturable(self.optimizer):
                self.replay = self.graphs.capture(lambda: self.update(self._inputs))
        except RuntimeError as error:
            # PyTorch raises an error about the end of the capture on top of the error that made the capture fail.
            reason = str(error.__context__ or error).strip().splitlines()[0].rstrip(".")
            if self.required:
                raise GraphError(
                    f"GraphedStep: a step must be capturable in a CUDA graph; got {reason}. Use --cuda-graph off."
                ) from error
            self._failed, self._inputs = True, []
            if (scaler := self.accelerator.scaler) is not None:
                # The scaler has noted a step that was never made; setting the scale makes the scaler start anew.
                scaler.update(scaler.get_scale())
            self.say(f"no CUDA graph: {reason}")


@contextmanager
def _capturable(optimizer: Optimizer) -> Iterator[None]:
    """Within the `with` block, tell Adam that it is captured; elsewhere, Adam would warn of this setting."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


class Interrupted(Exception):
    """The run was asked to stop, and has been saved. `exit_code` is 128 plus the signal's number, as in shells."""

    def __init__(self, message: str, received: signal.Signals | None) -> None:
        super().__init__(message)
        self.received = received
        self.exit_code = 128 + (received or signal.SIGTERM)


class StopRequest:
    """Makes the first SIGTERM or SIGINT in the `with` block a request to stop; a second one acts as usual.

    Under torchrun, which repeats signals and kills processes that take too long, all later signals are ignored.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}
        self._repeated = "TORCHELASTIC_RUN_ID" in os.environ

    def __enter__(self) -> Self:
        in_main_thread = threading.current_thread() is threading.main_thread()  # other threads may not handle signals
        for number in self.SIGNALS if in_main_thread else ():
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self.received is None or not self._repeated:  # torchrun may repeat the signal after all is saved
            self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)
        if not self._repeated:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def due(self, step: int, every: int) -> bool:
        """Whether any process was asked to stop; all processes call this after every step."""
        if self.accelerator.num_processes == 1:
            return self.received is not None
        if self.accelerator.device.type != "cpu" and step % every:  # the exchange makes GPUs wait for their hosts
            return False
        mine = torch.tensor([float(self.received is not None)], device=self.accelerator.device)
        return bool(sum_over_processes(self.accelerator, mine).item())


def share_statistics(network: nn.Module) -> None:
    """Make all batch norms compute their statistics over all processes; ValueError if no layer has batch norm."""
    layers = [module for module in network.modules() if isinstance(module, WeightedLayer) and module.batch_norm]
    if not layers:
        raise ValueError("train: sync_batch_norm must have a network with batch norm; got one without. Leave it out.")
    for layer in layers:
        layer.statistics_group = torch.distributed.group.WORLD  # None in a single process


def ask_main_process(accelerator: Accelerator, ask: Callable[[], Any], error: type[Exception]) -> Any:
    """Call `ask` in the main process; its result, or its `error`, reaches all processes."""
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = ask()
        except error as problem:
            answer[1] = str(problem)
    if accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(answer)
    if answer[1] is not None:
        raise error(answer[1])
    return answer[0]
