"""Accuracy, loss and activity of a network over a set of images: exact, over any number of processes."""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ttfs_triton.evaluate.batches import EvaluationBatches, load_batches
from ttfs_triton.nn import (
    LayerStatistics,
    NetworkGraph,
    collect_statistics,
    network_graph,
    record_statistics,
    reset_statistics,
    sparsity,
)
from ttfs_triton.nn.models import logits_and_decision
from ttfs_triton.nn.trace import evaluating


@dataclass(frozen=True)
class Evaluation:
    """Figures of one pass over a set of images.

    Attributes:
        images: number of images, over all processes; no image counts twice.
        accuracy, first_spike_accuracy: share of images that the readout, or the first output spike, classifies rightly.
        loss: mean cross entropy.
        ties, no_spike: numbers of images for which several output neurons tie as the first, or no output neuron fires.
        layers: activity of the layers, the readout included.
        top5_accuracy: share of images whose class is among the five highest logits.
        class_accuracy: share of each class's images that the readout classifies rightly; None without an image.
    """

    images: int
    accuracy: float
    loss: float
    first_spike_accuracy: float
    ties: int
    no_spike: int
    layers: list[LayerStatistics]
    top5_accuracy: float = math.nan
    class_accuracy: tuple[float | None, ...] = ()

    @property
    def sparsity(self) -> float:
        """Hidden spikes over hidden neurons, before pooling."""
        return sparsity(self.layers)


class EvaluationStopped(Exception):
    """Evaluation was cut short because the run was asked to stop."""


def evaluate(
    network: nn.Module,
    batches: EvaluationBatches,
    accelerator: Accelerator,
    *,
    num_workers: int = 0,
    stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Evaluation:
    """Score a network on this process's share of the images, and sum over processes.

    Args:
        network: an unwrapped network that `network_graph` accepts; its mode, training or evaluation, is restored.
        batches: this process's share.
        accelerator: gives the device, and sums over processes.
        num_workers: processes that decode images which are not in memory.
        stop: called before every batch of this process; true ends its share, and then the evaluation in all processes.
        on_batch: called with the number of images scored.
    Raises:
        NetworkError: as `network_graph` raises it.
        EvaluationStopped: `stop` returned true in some process.
        ValueError: outputs are NaN or infinite; class 0 would count as the highest.
    """
    graph = network_graph(network, batches.data.shape[1:])
    graph.prepare_statistics()
    reset_statistics(network)
    classes = len(graph.readout.weight)
    parts = 7, classes, classes, 1  # of `_score`, and 1 if this process stops
    scores = torch.zeros(sum(parts), dtype=torch.float64, device=accelerator.device)
    loader = load_batches(batches, accelerator.device, num_workers=num_workers)
    with torch.no_grad(), evaluating(network), record_statistics(network), closing(loader):
        for images, labels in loader:
            if stop():
                scores[-1] = 1
                break
            scores[:-1].add_(_score(network, graph, images, labels))
            on_batch(len(labels))
    figures, members, correct_members, stops = sum_over_processes(accelerator, scores).cpu().split(parts)
    images, ties, no_spike, *sums = figures.tolist()
    if stops:
        raise EvaluationStopped
    loss, accuracy, first_spike_accuracy, top5_accuracy = (value / images for value in sums)
    if not math.isfinite(loss):
        raise ValueError("evaluate: outputs of the network must be finite; got NaN or inf. Look at its weights.")
    layers = collect_statistics(network, lambda counts: sum_over_processes(accelerator, counts))
    order = {stage.name: place for place, stage in enumerate(graph.stages)}
    layers.sort(key=lambda layer: order.get(layer.name, 0))
    by_class = [share if share == share else None for share in (correct_members / members).tolist()]  # nan: no image
    counts = int(ties), int(no_spike), layers
    return Evaluation(int(images), accuracy, loss, first_spike_accuracy, *counts, top5_accuracy, tuple(by_class))


def _score(network: nn.Module, graph: NetworkGraph, images: Tensor, labels: Tensor) -> Tensor:
    """Scores of a batch, [7 + 2·classes] float64, on the device.

    In order: images, ties, images without an output spike, summed cross entropy, right decisions by the readout, by the
    first spike, and among the five highest logits; then images of each class, and right decisions of the readout.
    """
    logits, decision = logits_and_decision(network, graph.readout, images)
    logits = logits.float()
    correct, loss = logits.argmax(1) == labels, F.cross_entropy(logits, labels, reduction="sum")
    top5 = (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).sum()
    is_class = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
    first_spike_correct = decision.prediction == labels
    decided = decision.tie, decision.no_spike, loss, correct, first_spike_correct, top5
    figures = torch.stack([torch.full_like(loss, len(labels)), *(each.sum() for each in decided)])
    return torch.cat([figures, is_class.sum(0), (is_class & correct[:, None]).sum(0)]).double()


def sum_over_processes(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Sum a tensor over all processes; every process gets the result, `values` stays as it is."""
    return cast(Tensor, accelerator.reduce(values.clone(), "sum"))
