"""CUDA graphs: a step of a run, captured once and replayed, hundreds of launches in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer

from ttfs_triton.evaluate.batches import Batch

if TYPE_CHECKING:
    from ttfs_triton.train.learner import Learner

# Steps before the capture. DistributedDataParallel times its first ten, and rearranges its buckets in the first.
WARM_UP = 3
WARM_UP_DISTRIBUTED = 11


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


class GraphError(RuntimeError):
    """Work could not be captured in a CUDA graph."""


class GraphedStep:
    """A step that is captured in a CUDA graph after its warm-up, and replayed from then on: one launch for hundreds.

    All steps must have micro-batches of the same shapes. Steps that count spikes or begin an average run without it.
    A captured step cannot read numbers on the host: learning rates are tensors, and the caller counts the steps. A
    capture executes nothing, and the steps before it are steps of the run: weights are the same with and without it.
    """

    def __init__(self, learner: Learner, graphs: CudaGraphs) -> None:
        self.learner, self.graphs = learner, graphs
        self.replay: Callable[[], None] | None = None
        self._inputs: list[Batch] = []
        distributed = learner.accelerator.num_processes > 1
        if distributed:  # its logging would wait for the device every hundred steps, also during a capture
            learner.model._set_ddp_runtime_logging_sample_rate(2**31 - 1)  # type: ignore[operator]
        self._warm_up = self._steps_before = WARM_UP_DISTRIBUTED if distributed else WARM_UP
        self._failed = False
        # CUDA's fused kernels read a rate as float32, PyTorch's own on the CPU as float64.
        device = learner.accelerator.device
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        for group in learner.optimizer.param_groups:
            group["lr"] = torch.zeros((), dtype=dtype, device=device)

    def __call__(self, micro_batches: Sequence[Batch], *, sampled: bool = False, first: bool = False) -> None:
        """Make the step, as `Learner.update` does."""
        if sampled or first or self._failed:
            self.learner.update(micro_batches, sampled=sampled, first=first)
        elif self._warm_up > 0:
            self._warm_up -= 1
            with self.graphs.aside():
                self.learner.update(micro_batches)
        else:
            if self.replay is None:
                self._capture(micro_batches)
            if self.replay is None:
                self.learner.update(micro_batches)
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
        learner = self.learner
        learner.optimizer.zero_grad(set_to_none=True)
        try:
            with _capturable(learner.optimizer):
                self.replay = self.graphs.capture(lambda: learner.update(self._inputs))
        except RuntimeError as error:
            # PyTorch raises the error of ending the capture on top of the one that made it fail.
            reason = str(error.__context__ or error).strip().splitlines()[0].rstrip(".")
            if learner.config.cuda_graph == "on" or learner.accelerator.num_processes > 1:
                raise GraphError(
                    f"GraphedStep: a step must be capturable in a CUDA graph; got {reason}. Use --cuda-graph off."
                ) from error
            self._failed, self._inputs = True, []
            if (scaler := learner.accelerator.scaler) is not None:
                # The scaler has noted a step that was never made; setting its scale makes it start anew.
                scaler.update(scaler.get_scale())
            learner.say(f"no CUDA graph: {reason}")


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
