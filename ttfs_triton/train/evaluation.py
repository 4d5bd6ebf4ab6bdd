"""The evaluations of a run: validation after each epoch, through one graph; the test images once, and the summary."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ttfs_triton.data.images import ImageData
from ttfs_triton.hardware import Counts, counting
from ttfs_triton.model.weights import LoadError, read_weights_into
from ttfs_triton.nn.weighted import WeightedLayer
from ttfs_triton.run_records import Summary
from ttfs_triton.scoring import (
    Evaluation,
    EvaluationBatches,
    PaddedScorer,
    Scorer,
    device_name,
    evaluate,
    versions,
)
from ttfs_triton.scoring.batches import load_batches
from ttfs_triton.scoring.graphs import CudaGraphs
from ttfs_triton.train.config import TrainConfig
from ttfs_triton.train.run_folder import RunFolderError

if TYPE_CHECKING:
    from ttfs_triton.train.loop import TrainingLoop

STATISTICS_IMAGES = 5_000
"""Training images of which batch norm takes its statistics for evaluation."""


class Evaluator:
    """Scores the network of a run.

    Args:
        config: of the run.
        accelerator: processes, device, precision.
        graphs: of the device; None: batches are scored one by one.
        say: shows a line.
        stop: asked before each batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        graphs: CudaGraphs | None,
        say: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> None:
        self.config, self.accelerator, self.graphs, self.say, self.stop = config, accelerator, graphs, say, stop
        self._scorer: Scorer | None = None

    def __call__(
        self, network: nn.Module, images: ImageData, indices: Tensor | None = None, *, every_epoch: bool = False
    ) -> Evaluation:
        """Score images, each once over all processes.

        Args:
            network: unwrapped.
            images: and labels.
            indices: [n], int64, of those to score. Default: all.
            every_epoch: the same network will score the same images again: what is compiled and captured is kept. Else
                batches are scored as they are, also while layers count operations, sample by sample.
        Raises:
            EvaluationStopped: `stop` said so in some process.
        """
        accelerator = self.accelerator
        size = self.config.evaluation_batch_size
        batches = EvaluationBatches(images, indices, size, accelerator.process_index, accelerator.num_processes)
        if every_epoch and self._scorer is None:
            self._scorer = self._make_scorer(network, max(1, min(size, len(batches.indices))), images.shape[1:])
        return evaluate(
            network,
            batches,
            accelerator,
            scorer=self._scorer if every_epoch else None,
            num_workers=self.config.num_workers,
            stop=self.stop,
        )

    def forget(self) -> None:
        """Compile and capture anew: neurons have changed."""
        self._scorer = None

    def _make_scorer(self, network: nn.Module, batch_size: int, image_shape: tuple[int, ...]) -> Scorer:
        if self.graphs is None and self.accelerator.device.type == "cpu":
            # Nothing is compiled for a batch size: padding is mere work.
            return Scorer(network, self.accelerator, image_shape)
        required = self.config.cuda_graph == "on"
        options: dict[str, Any] = {"graphs": self.graphs, "required": required, "say": self.say}
        return PaddedScorer(network, self.accelerator, batch_size, image_shape, **options)


@torch.no_grad()
def refresh_statistics(
    network: nn.Module, images: ImageData, indices: Tensor, batch_size: int, accelerator: Accelerator
) -> None:
    """Take the statistics of all batch norms anew, from the first training images without augmentation.

    Running statistics lag behind weights at a high rate, and behind averages of weights they say nothing of. Every
    process takes those of the same images. A network without batch norm is left alone.

    Args:
        network: its buffers change; its mode stays.
        images, indices: [n], int64, of the training images.
        batch_size: images at a time; statistics are means over whole batches.
        accelerator: device and precision.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, WeightedLayer)]
    norms = [(layer, layer.batch_norm) for layer in layers if layer.batch_norm is not None]
    if not norms:
        return
    size = min(batch_size, len(indices))
    batches = EvaluationBatches(images, indices[: max(size, STATISTICS_IMAGES // size * size)], size)
    was_training, before = network.training, [(norm.momentum, layer.statistics_group) for layer, norm in norms]
    network.eval()
    for layer, norm in norms:
        norm.reset_running_stats()
        norm.momentum, layer.statistics_group = 0.0, None  # a mean over all batches
        norm.train()
    try:
        with closing(load_batches(batches, accelerator.device)) as loaded, accelerator.autocast():
            for index, (some, _) in enumerate(loaded):
                if len(some) == size or index == 0:
                    network(some)
    finally:
        for (layer, norm), (momentum, group) in zip(norms, before, strict=True):
            norm.momentum, layer.statistics_group = momentum, group
        network.train(was_training)


def score_run(loop: TrainingLoop) -> dict[str, Any]:
    """Load the best weights, score the test images once, write and show the summary.

    Returns:
        The final figures, as JSON values.
    Raises:
        EvaluationStopped: a signal asked to stop.
        RunFolderError: the best weights are damaged.
    """
    network, folder, accelerator = loop.scored_network, loop.folder, loop.accelerator
    try:
        read_weights_into(network, folder.best_weights)
    except LoadError as error:
        raise RunFolderError(str(error)) from error
    with counting(network, image_shape=loop.graph.image_shape, histogram_bins=0, by_sample=False) as counter:
        evaluation = loop.score_test_images(network)
    if loop.average is not None:
        loop.network.load_state_dict(network.state_dict())
    summary = _make_summary(loop, evaluation, counter.counts(accelerator))
    if accelerator.is_main_process:
        folder.write_summary(summary)
    loop.display.result(summary, evaluation.layers)
    loop.display.say(f"run folder               {folder.path}")
    accelerator.wait_for_everyone()
    return summary.model_dump()


def _make_summary(loop: TrainingLoop, test: Evaluation, counts: Counts) -> Summary:
    config, metrics = loop.config, loop.position.metrics
    best = metrics[loop.position.best_epoch - 1]
    seconds = sum(line.seconds for line in metrics)
    return Summary(
        test_accuracy=test.accuracy,
        test_first_spike_accuracy=test.first_spike_accuracy,
        test_images=test.images,
        test_fingerprint=loop.data.test.fingerprint,
        ties=test.ties,
        no_spike=test.no_spike,
        val_accuracy=best.val_accuracy,
        best_epoch=loop.position.best_epoch,
        weights_sha256=loop.folder.best_sha256(),
        sparsity=test.sparsity,
        sparsity_with_outputs=test.sparsity_with_outputs,
        sparsity_as_published=counts.sparsity_as_published,
        target=None if loop.target is None else loop.target.result(metrics, best, counts),
        counts=counts.to_dict(),
        epochs=len(metrics),
        seconds_per_epoch=seconds / len(metrics),
        images_per_second=len(metrics) * loop.steps_per_epoch * config.batch_size / seconds,
        seed=config.seed,
        skipped_images={"train": loop.data.train.skipped, "test": loop.data.test.skipped},
        versions=versions(),
        device=device_name(loop.accelerator.device),
        processes=loop.accelerator.num_processes,
        mixed_precision=loop.accelerator.mixed_precision,
        changes=loop.changes,
    )
