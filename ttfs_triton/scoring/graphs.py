"""CUDA graphs: a captured graph replays hundreds of kernel launches with one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


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
