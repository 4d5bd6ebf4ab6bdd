"""Training steps as CUDA graphs: one launch replaces hundreds.

A captured step cannot read numbers on the host: learning rates are tensors, and the caller counts the steps. It follows
the rules of PyTorch's "CUDA graph semantics": some steps on a side stream first, gradients set to None before the
capture, inputs copied to fixed addresses. A capture executes nothing, and the steps before it are steps of the run:
weights are the same with and without a graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.optim import Optimizer

from ttfs_triton.evaluate.batches import Batch
from ttfs_triton.nn import NetworkGraph
from ttfs_triton.train.config import ConfigError, TrainConfig
from ttfs_triton.train.step import TrainStep


class GraphError(RuntimeError):
    """Work could not be captured in a CUDA graph."""


class CudaGraphs:
    """Captures CUDA graphs on a device, in a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run on the capture stream, after earlier work and before later work: autograd remembers streams."""
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
        return graph.replay


# Steps before the capture. DistributedDataParallel times its first ten, and rearranges its buckets in the first.
WARM_UP = 3
WARM_UP_DISTRIBUTED = 11


def choose_graphs(
    config: TrainConfig, accelerator: Accelerator, graph: NetworkGraph, say: Callable[[str], None]
) -> CudaGraphs | None:
    """The CUDA graphs of a run's device; None, after a line that says why, if steps are not captured."""
    if config.cuda_graph == "off":
        return None
    if accelerator.device.type != "cuda":
        reason = "the device is not a GPU"
    elif not torch.backends.cuda.is_built():
        reason = "this PyTorch is built without CUDA"
    elif accelerator.num_processes > 1 and torch.distributed.get_backend() != "nccl":
        reason = f"{torch.distributed.get_backend()} cannot be captured, only nccl"
    elif (grid := graph.grid) and (config.weight_noise or not grid.weight_bits or any(s.skip for s in graph.stages)):
        reason = "on a grid, layers without weight_bits, with skips or with weight noise wait for their weights"
    else:
        return CudaGraphs(accelerator.device)
    if config.cuda_graph == "on":
        raise ConfigError(f"cuda_graph: on needs steps that can be captured, but {reason}; use auto or off.")
    say(f"no CUDA graph: {reason}")
    return None


class GraphedStep:
    """A step that is captured after its warm-up, and replayed from then on.

    All steps must have micro-batches of the same shapes. Steps that count spikes or begin an average run without it.

    Args:
        required: raise if the capture fails; else the run continues without a graph, and says so.
    """

    def __init__(self, step: TrainStep, graphs: CudaGraphs, *, required: bool, say: Callable[[str], None]) -> None:
        self.step, self.graphs, self.required, self.say = step, graphs, required, say
        self.replay: Callable[[], None] | None = None
        self._inputs: list[Batch] = []
        distributed = step.accelerator.num_processes > 1
        if distributed:  # its logging would wait for the device every hundred steps, also during a capture
            step.model._set_ddp_runtime_logging_sample_rate(2**31 - 1)  # type: ignore[operator]
        self._warm_up = self._steps_before = WARM_UP_DISTRIBUTED if distributed else WARM_UP
        self._failed = False
        # CUDA's fused kernels read a rate as float32, PyTorch's own on the CPU as float64.
        device = step.accelerator.device
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        for group in step.bare_optimizer.param_groups:
            group["lr"] = torch.zeros((), dtype=dtype, device=device)

    def __call__(self, micro_batches: Sequence[Batch], *, sampled: bool = False, first: bool = False) -> None:
        """Run the step, as `TrainStep` does."""
        if sampled or first or self._failed:
            self.step(micro_batches, sampled=sampled, first=first)
        elif self._warm_up > 0:
            self._warm_up -= 1
            with self.graphs.aside():
                self.step(micro_batches)
        else:
            if self.replay is None:
                self._capture(micro_batches)
            if self.replay is None:
                self.step(micro_batches)
                return
            for (images, labels), (own_images, own_labels) in zip(micro_batches, self._inputs, strict=True):
                own_images.copy_(images, non_blocking=True)
                own_labels.copy_(labels, non_blocking=True)
            self.replay()

    def forget(self) -> None:
        """Warm up and capture anew: the step launches other kernels from now on, which a capture cannot load."""
        self.replay, self._inputs, self._warm_up = None, [], self._steps_before

    def _capture(self, micro_batches: Sequence[Batch]) -> None:
        # `clone` keeps channels last: other kernels are captured for another memory format.
        self._inputs = [(images.clone(), labels.clone()) for images, labels in micro_batches]
        # The graph's gradients are allocated in the graph's own memory.
        self.step.optimizer.zero_grad(set_to_none=True)
        try:
            with _capturable(self.step.bare_optimizer):
                self.replay = self.graphs.capture(lambda: self.step(self._inputs))
        except RuntimeError as error:
            # PyTorch raises the error of ending the capture on top of the one that made it fail.
            reason = str(error.__context__ or error).strip().splitlines()[0].rstrip(".")
            accelerator = self.step.accelerator
            if self.required or accelerator.num_processes > 1:
                raise GraphError(
                    f"GraphedStep: a step must be capturable in a CUDA graph; got {reason}. Use --cuda-graph off."
                ) from error
            self._failed, self._inputs = True, []
            if accelerator.scaler is not None:
                # The scaler has noted a step that was never made; setting its scale makes it start anew.
                accelerator.scaler.update(accelerator.scaler.get_scale())
            self.say(f"no CUDA graph: {reason}")


@contextmanager
def _capturable(optimizer: Optimizer) -> Iterator[None]:
    """Within the `with` block, tell Adam that it is being captured; elsewhere Adam would warn of this setting."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False
