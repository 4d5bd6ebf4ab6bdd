"""A network's scores, batch by batch, added up on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ttfs_triton.nn import network_graph, record_statistics, reset_statistics
from ttfs_triton.nn.models import logits_and_decision
from ttfs_triton.nn.trace import evaluating


class GraphError(RuntimeError):
    """Work could not be captured."""


class CudaGraphs:
    """Graphs of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run on the stream that captures, after earlier work and before later: autograd remembers streams."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work without doing it, and return a function that does it; other threads go on with theirs."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


def reason_of_failure(error: RuntimeError) -> str:
    """The first line of the error of a capture."""
    return str(error).strip().splitlines()[0].rstrip(".")


PADDING = -1  # label of images that do not count


class Scorer:
    """Adds up the scores of batches as they come.

    Args:
        network: what `network_graph` takes, unwrapped; its layers get spike counters.
        accelerator: for device and autocast.
        image_shape: as of `network_graph`.
    Attributes:
        sums: [6], float64, on the device: images, right decisions by the readout's score, cross entropy, right
            decisions by the first spike, ties, images without an output spike.
    """

    def __init__(self, network: nn.Module, accelerator: Accelerator, image_shape: Sequence[int] | None = None) -> None:
        self.network, self.accelerator = network, accelerator
        self.graph = network_graph(network, image_shape)
        self.graph.prepare_statistics()
        self.sums = torch.zeros(6, dtype=torch.float64, device=accelerator.device)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Start at zero; within the block, the network is in evaluation mode and its layers count spikes."""
        self.sums.zero_()
        reset_statistics(self.network)
        with torch.no_grad(), evaluating(self.network), record_statistics(self.network), self._casts():
            yield

    def _casts(self) -> AbstractContextManager[None]:
        """Weights are cast once for all batches."""
        return self.accelerator.autocast()

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Score images [n, C, height, width], in [0, 1], with labels [n], int64 or `PADDING`, on the device."""
        logits, decision = logits_and_decision(self.network, self.graph.readout, images)
        logits, counted = logits.float(), labels != PADDING
        self.sums += torch.stack(
            [
                counted.sum(),
                (logits.argmax(1) == labels).sum(),  # padding is nobody's class
                F.cross_entropy(logits, labels, reduction="sum", ignore_index=PADDING),
                (decision.prediction == labels).sum(),
                (decision.tie & counted).sum(),
                (decision.no_spike & counted).sum(),
            ]
        ).double()


class PaddedScorer(Scorer):
    """A scorer whose batches all have one size: a smaller one is filled up with images that do not count.

    So kernels are compiled for one size, and the work on a batch can be captured in a CUDA graph once, for all
    evaluations of a run. All sums and counts are, bit for bit, those of the images alone in a batch of that size.

    Args:
        network, accelerator, image_shape: as of `Scorer`.
        batch_size: of all batches; the largest that comes.
        graphs: of the device; None: batches are scored one by one.
        required: whether a capture that fails is an error; else batches are scored without, and `say` says so.
        say: shows a line.
    Raises:
        GraphError: when called, if the capture failed and is required.
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
        device = accelerator.device
        self._images = torch.zeros((batch_size, *self.graph.image_shape), device=device)
        if self._images.dim() == 4:
            self._images = self._images.contiguous(memory_format=torch.channels_last)
        self._labels = torch.full((batch_size,), PADDING, device=device)
        self.replay: Callable[[], None] | None = None
        self._warm = False

    def _casts(self) -> AbstractContextManager[None]:
        """Weights are cast for each batch, within the capture: they are others when it is replayed."""
        return nullcontext()

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """As of `Scorer`, for up to `batch_size` images."""
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
        with record_statistics(self.network, counted=self._labels != PADDING), self.accelerator.autocast():
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
