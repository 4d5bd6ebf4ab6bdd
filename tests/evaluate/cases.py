"""A small network and everything a report can show of it; images that carry their number."""

import functools

import torch
from torch import Tensor

from ttfs_triton.chip import simulate
from ttfs_triton.data.decode import InMemoryImages
from ttfs_triton.data.images import ImageData
from ttfs_triton.energy import RunOptions, compare, count, estimate
from ttfs_triton.evaluate import Evaluation
from ttfs_triton.evaluate.deadline import DeadlineRow
from ttfs_triton.evaluate.measure import EvaluationResult, Sample, spikes_of
from ttfs_triton.nn import NetworkConfig, TTFSNetwork


@functools.cache
def small_network() -> TTFSNetwork:
    torch.manual_seed(0)
    return TTFSNetwork(NetworkConfig("4C3-P2-12", image_size=(8, 8), classes=3)).eval()


@functools.cache
def full_report() -> EvaluationResult:
    network = small_network()
    torch.manual_seed(1)
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    batches = [(images, labels)]
    counts = count(network, batches)
    chips = ("lemaire45:int8", "loihi", "truenorth")
    return EvaluationResult(
        title="small network",
        network=network.config.to_dict(),
        dataset="noise",
        scores=Evaluation(6, 1 / 2, 1.0, first_spike_accuracy=1 / 3, ties=1, no_spike=0, layers=[]),
        counts=counts,
        sample=Sample(images[0], spikes_of(network, images[0]), "cat", "dog", ("cat", "dog", "cow")),
        energy=tuple(estimate(counts, chip, steps=8) for chip in chips),
        chip="loihi",
        comparison=compare(counts, "lemaire45:int8", RunOptions(steps=8)),
        simulation=simulate(network, batches, steps=8),
        deadlines=(DeadlineRow(3.5, 0.9, 0.25, 3.375), DeadlineRow(4.0, 1.0, 1.0, 3.5)),
        facts={"torch": "2.13", "command": "evaluate runs/small"},
    )


def numbered(n: int, channels: int = 1) -> ImageData:
    """Image i and label i carry the number i."""
    pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 8, 8, channels).contiguous()
    return ImageData(InMemoryImages(pixels), torch.arange(n), [str(i) for i in range(n)], "a/b", "train", "0")


def join(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)
