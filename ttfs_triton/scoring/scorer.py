"""Adds up a network's scores on the device, batch by batch, and captures such work in CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ttfs_triton.nn import network_graph, record_statistics, reset_statistics
from ttfs_triton.nn.models import logits_and_decision
from ttfs_triton.nn.trace import evaluating


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


def reason_of_failure(error: RuntimeError) -> str:
    """First line of the error that made a capture fail; PyTorch raises the error of ending the capture on top of it."""
    return str(error.__context__ or error).strip().splitlines()[0].rstrip(".")


PADDING = -1  # label of images that do not count


class Scorer:
    """Adds up the scores of batches as they come.

    Args:
        network: an unwrapped network that `network_graph` accepts; its layers get spike counters. It is scored in
            mixed precision if Accelerate has prepared it so.
        accelerator: for its device.
        image_shape: as in `network_graph`.
    Attributes:
        sums: [6], float64, on the device: images, right decisions by the readout's score, cross entropy, right
            decisions by the first spike, ties, images without an output spike.
    """

    def __init__(self, network: nn.Module, accelerator: Accelerator, image_shape: Sequence[int] | None = None) -> None:
        self.network = network
        self.graph = network_graph(network, image_shape)
        self.graph.prepare_statistics()
        self.sums = torch.zeros(6, dtype=torch.float64, device=accelerator.device)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Start at zero; within the block, the network is in evaluation mode and its layers count spikes."""
        self.sums.zero_()
        reset_statistics(self.network)
        with torch.no_grad(), evaluating(self.network), record_statistics(self.network):
            yield

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Score images [n, C, height, width], in [0, 1], with labels [n], int64 or `PADDING`, on the device."""
        logits, decision = logits_and_decision(self.network, self.graph.readout, images)
        logits, counted = logits.float(), labels != PADDING
        self.sums += torch.stack(
            [
                counted.sum(),
                (logits.argmax(1) == labels).sum(),  # padding matches no class
                F.cross_entropy(logits, labels, reduction="sum", ignore_index=PADDING),
                (decision.prediction == labels).sum(),
                (decision.tie & counted).sum(),
                (decision.no_spike & counted).sum(),
            ]
        ).double()


class PaddedScorer(Scorer):
    """A scorer whose batches all have one size: smaller batches are padded with images that do not count.

    Kernels are then compiled for one size, and the work on a batch can be captured in a CUDA graph once, for all
    evaluations of a run. Padding changes no bit of the sums and counts.

    Args:
        network, accelerator, image_shape: as in `Scorer`.
        batch_size: size of all batches; the largest that comes.
        graphs: CUDA graphs of the device; None: nothing is captured.
        required: whether a failed capture is an error; else batches are scored without a graph, and `say` says so.
        say: prints a line.
    Raises:
        GraphError: in a call, if a capture that is required fails.
    """

    def __init__(
        self,
        network: nn.Module,
        accelerator: Accelerator,
        batch_size: int,
        image_shape: Sequence[int] | None = None,
        *,
        graphs: CudaGraphs | None = None,
        required: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(network, accelerator, image_shape)
        self.graphs, self.required, self.say = graphs, required, say
        self._images = torch.zeros((batch_size, *self.graph.image_shape), device=self.sums.device)
        if self._images.dim() == 4:
            self._images = self._images.contiguous(memory_format=torch.channels_last)
        self._labels = torch.full((batch_size,), PADDING, device=self.sums.device)
        self.replay: Callable[[], None] | None = None
        self._warm = False

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Score images as `Scorer` does, up to `batch_size` of them."""
        number = len(labels)
        self._images[:number].copy_(images, non_blocking=True)
        self._labels[:number].copy_(labels, non_blocking=True)
        self._labels[number:].fill_(PADDING)
        if self.graphs is None:
            self._score()
        elif not self._warm:
            self._warm = True
            with self.graphs.aside():
                self._score()
        else:
            if self.replay is None:
                self._capture(self.graphs)
            (self.replay or self._score)()

    def _score(self) -> None:
        with record_statistics(self.network, counted=self._labels != PADDING):
            super().__call__(self._images, self._labels)

    def _capture(self, graphs: CudaGraphs) -> None:
        try:
            self.replay = graphs.capture(self._score)
        except RuntimeError as error:
            reason = reason_of_failure(error)
            if self.required:
                raise GraphError(
                    f"PaddedScorer: a batch must be capturable in a CUDA graph; got {reason}. Use --cuda-graph off."
                ) from error
            self.graphs = None
            self.say(f"no CUDA graph in evaluation: {reason}")
