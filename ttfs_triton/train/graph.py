"""An optimiser step as one CUDA graph: hundreds of launches become one.

The rules are those of PyTorch's "CUDA graph semantics": some steps on a side stream first, gradients set to None before
the capture, inputs copied into memory that stays, learning rates as tensors, no reading by the host. A capture
executes nothing, and the steps before it are steps of the run: with a graph and without, weights are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from accelerate import Accelerator
from torch.optim import Optimizer

from ttfs_triton.scoring.batches import Batch
from ttfs_triton.scoring.graphs import CudaGraphs, GraphError, Graphs, reason_of_failure
from ttfs_triton.train.config import ConfigError
from ttfs_triton.train.step import TrainStep

# Steps before the capture. DistributedDataParallel times its first ten, and rearranges its buckets in the first.
WARM_UP = 3
WARM_UP_DISTRIBUTED = 11


def why_no_graph(accelerator: Accelerator) -> str | None:
    """Why steps of a run cannot be captured; None if they can."""
    if accelerator.device.type != "cuda":
        return "the device is no GPU"
    if not torch.backends.cuda.is_built():
        return "this PyTorch is built without CUDA"
    if accelerator.num_processes > 1 and torch.distributed.get_backend() != "nccl":
        return f"{torch.distributed.get_backend()} cannot be captured, only nccl"
    return None


def choose_graphs(
    wanted: Literal["auto", "on", "off"], accelerator: Accelerator, say: Callable[[str], None]
) -> CudaGraphs | None:
    """The graphs of a run's device, or None where steps are made one by one, and a line that says why.

    Raises:
        ConfigError: they are asked for and cannot be had.
    """
    if wanted == "off":
        return None
    reason = why_no_graph(accelerator)
    if reason is None:
        return CudaGraphs(accelerator.device)
    if wanted == "on":
        raise ConfigError(f"cuda_graph: on needs steps that can be captured, but {reason}; use auto or off.")
    say(f"no CUDA graph: {reason}")
    return None


class GraphedStep:
    """A step that is captured as soon as it has warmed up, and replayed from then on.

    Steps that count spikes, the first step of a run, and micro-batches of another shape are made as they would be
    without a graph.

    Args:
        step: to be captured.
        graphs: of its device.
        required: whether a capture that fails is an error; else the run goes on without, and says so.
        say: shows a line.
    Raises:
        GraphError: when called, if the capture failed and is required, or if there are several processes, whose
            agreement is then lost.
    """

    def __init__(self, step: TrainStep, graphs: Graphs, *, required: bool, say: Callable[[str], None]) -> None:
        self.step, self.graphs, self.required, self.say = step, graphs, required, say
        self.replay: Callable[[], None] | None = None
        self._inputs: list[Batch] = []
        distributed = step.accelerator.num_processes > 1
        self._warm_up = WARM_UP_DISTRIBUTED if distributed else WARM_UP
        self._failed = False
        # CUDA's fused kernels read a rate as float32, PyTorch's own on the CPU as float64.
        device = step.accelerator.device
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        step.rates = [torch.zeros((), dtype=dtype, device=device) for _ in step.bare_optimizer.param_groups]

    def __call__(self, micro_batches: Sequence[Batch], *, sampled: bool = False, first: bool = False) -> None:
        """As of `TrainStep`."""
        self._set_rates()
        if sampled or first or self._failed or (self.replay is not None and not self._fit(micro_batches)):
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
        """Capture anew at the next step, since what the graph holds as constants has changed."""
        self.replay, self._inputs = None, []

    def _set_rates(self) -> None:
        for group, rate in zip(self.step.bare_optimizer.param_groups, self.step.rates or [], strict=True):
            rate.fill_(group["lr"])

    def _fit(self, micro_batches: Sequence[Batch]) -> bool:
        return [_kinds(batch) for batch in micro_batches] == [_kinds(batch) for batch in self._inputs]

    def _capture(self, micro_batches: Sequence[Batch]) -> None:
        # `empty_like` keeps channels last, of which the kernels are a function.
        self._inputs = [(torch.empty_like(images), torch.empty_like(labels)) for images, labels in micro_batches]
        for own, given in zip(self._inputs, micro_batches, strict=True):
            own[0].copy_(given[0])
            own[1].copy_(given[1])
        # The graph's gradients get memory of its own.
        self.step.optimizer.zero_grad(set_to_none=True)
        try:
            with _capturable(self.step.bare_optimizer):
                self.replay = self.graphs.capture(lambda: self.step(self._inputs))
        except RuntimeError as error:
            self._give_up(error)

    def _give_up(self, error: RuntimeError) -> None:
        reason = reason_of_failure(error)
        accelerator = self.step.accelerator
        if self.required or accelerator.num_processes > 1:
            raise GraphError(
                f"GraphedStep: a step must be capturable in a CUDA graph; got {reason}. Use --cuda-graph off."
            ) from error
        self._failed, self._inputs = True, []
        if accelerator.scaler is not None:
            # It believes that it has stepped; a scale given to it makes it start anew.
            accelerator.scaler.update(accelerator.scaler.get_scale())
        self.say(f"no CUDA graph: {reason}")


def _kinds(batch: Batch) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in batch]


@contextmanager
def _capturable(optimizer: Optimizer) -> Iterator[None]:
    """Tell Adam that it is captured; outside a capture it would warn of that."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False
