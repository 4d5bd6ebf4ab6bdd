"""Counting of spikes and synaptic operations while a network runs.

`count(model, batches)` runs the network itself. Inside `with counting(model) as counter:` other code runs it, such as
the trainer's evaluation. Counts stay on the device, as int64, until `counter.counts()` reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ttfs_triton.energy.counts import Counts
from ttfs_triton.energy.layer_counter import LayerCounter, network_counts
from ttfs_triton.nn.graph import NetworkGraph, network_graph
from ttfs_triton.nn.trace import evaluating


@torch.no_grad()
def count(
    model: nn.Module,
    batches: Iterable[Tensor] | Iterable[tuple[Tensor, ...]],
    *,
    histogram_bins: int = 50,
) -> Counts:
    """Run a network over batches and count its spikes and operations.

    Args:
        model: a network that `network_graph` accepts, not compiled. It runs in evaluation mode; its mode is restored.
        batches: images [N, ...] in the form that the model takes, or tuples that start with such images. They are moved
            to the model's device.
        histogram_bins: number of bins of the spike-time histograms, which hold the first 250 samples of each process;
            0 for no histograms.
    Returns:
        Exact counts, summed over the samples of this process. `counting` also sums over processes.
    Raises:
        NetworkError: the model is no network of this project's layers. The message says what to use instead.
        ValueError: `batches` is empty.
    Example:
        >>> from ttfs_triton.nn import cnn1
        >>> counts = count(cnn1(), [torch.rand(4, 1, 28, 28)])
        >>> counts.samples, counts.layers[0].synapses
        (4, 287296)
        >>> 0 <= counts.sparsity <= 1
        True
    """
    graph, remaining = graph_of_batches("count", model, batches)
    device = next(model.parameters()).device
    with evaluating(model), Counter(graph, histogram_bins) as counter:
        for batch in remaining:
            model(images_and_labels(batch)[0].to(device, non_blocking=True))
    return counter.counts()


def graph_of_batches(function: str, model: nn.Module, batches: Iterable[Any]) -> tuple[NetworkGraph, Iterable[Any]]:
    """The model's graph for images of the batches' shape, and an iterator over all batches; errors name `function`."""
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise ValueError(f"{function}: batches must not be empty; got none. A generator gives its batches only once.")
    return network_graph(model, images_and_labels(first)[0].shape[1:]), chain((first,), remaining)


def images_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Images of a batch, and its labels or None."""
    if isinstance(batch, Tensor):
        return batch, None
    return batch[0], batch[1] if len(batch) > 1 else None


def counting(model: nn.Module, *, image_shape: Sequence[int] | None = None, histogram_bins: int = 50) -> Counter:
    """A counter of every forward pass inside its `with` block. Arguments as in `network_graph` and `count`.

    Inside the block, the counter replaces the layers' own statistics; `collect_statistics` reads the counter's.
    """
    return Counter(network_graph(model, image_shape), histogram_bins)


class Counter:
    """Counts a running network's spikes and operations; made by `counting`."""

    def __init__(self, graph: NetworkGraph, histogram_bins: int) -> None:
        if histogram_bins < 0:
            raise ValueError(f"counting: histogram_bins must be at least 0, for none; got {histogram_bins}.")
        self._graph = graph
        self._layers = [LayerCounter(stage, histogram_bins) for stage in graph.weighted]
        self._undo = ExitStack()

    def __enter__(self) -> Counter:
        for counter in self._layers:
            layer, own = counter.layer, counter.layer.statistics

            def arrive(_: nn.Module, inputs: Any, options: Any, counter: LayerCounter = counter) -> None:
                counter.arrive(inputs[0], options.get("skip"))

            self._undo.callback(layer.register_forward_pre_hook(arrive, with_kwargs=True).remove)
            self._undo.callback(setattr, layer, "statistics", own)
            self._undo.callback(setattr, counter, "recording", False)
            layer.statistics, counter.recording = counter, True
        if self._graph.encoder.kind == "latency":
            self._undo.callback(self._graph.encoder.layer.register_forward_hook(self._encode).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _encode(self, _: nn.Module, __: Any, activations: Tensor) -> None:
        first, found = self._layers[0], torch.count_nonzero(activations > 0)
        first.encoded = first.encoded.to(found.device) + found  # the network may have moved

    def counts(self, accelerator: Accelerator | None = None) -> Counts:
        """The counts so far. Only this call copies from the device.

        Args:
            accelerator: sum over its processes, each of which must count different samples; all of them must call
                this. Default: this process alone.
        """
        vectors = [*(counter.sums() for counter in self._layers), self._layers[0].encoded]
        sums = torch.cat([vector.to(vectors[0].device) for vector in vectors])  # the encoder's may be on another device
        times = torch.stack([counter.times() for counter in self._layers])
        if accelerator is not None and accelerator.num_processes > 1:
            sums, times = (torch.as_tensor(accelerator.reduce(values, "sum")) for values in (sums, times))
        *read, encoder = sums.cpu().split([len(vector) for vector in vectors])
        layers = [own.read(sums, time) for own, sums, time in zip(self._layers, read, times.tolist(), strict=True)]
        if not all(layer.samples for layer, _ in layers):
            raise ValueError("counting: the network must run inside the block; it did not. Give it images there.")
        bits = None if self._graph.grid is None else self._graph.grid.weight_bits
        return network_counts(self._graph, layers, int(encoder), bits)
