"""Evaluations of a run: validation after each epoch, test images and summary at the end."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ttfs_triton.data.images import ImageData, draw_indices
from ttfs_triton.energy import Counts, counting
from ttfs_triton.evaluate import Evaluation, EvaluationBatches, device_name, evaluate, versions
from ttfs_triton.evaluate.batches import load_batches
from ttfs_triton.model.locate import ModelFiles
from ttfs_triton.model.weights import LoadError, load_tensors, read_weights
from ttfs_triton.nn.weighted import WeightedLayer
from ttfs_triton.run_records import EpochLine, Summary
from ttfs_triton.train.run_folder import RunFolder, RunFolderError

if TYPE_CHECKING:
    from ttfs_triton.train.loop import TrainingLoop

STATISTICS_IMAGES = 5_000
"""Training images for the statistics of batch norm in evaluation."""


def score(loop: TrainingLoop, images: ImageData, indices: Tensor | None = None) -> Evaluation:
    """Score the network of a run on images, each once over all processes.

    Args:
        indices: [n], int64, of the images to score. Default: all.
    """
    config, accelerator, network = loop.config, loop.accelerator, loop.scored_network
    size = config.evaluation_batch_size
    batches = EvaluationBatches(images, indices, size, accelerator.process_index, accelerator.num_processes)
    return evaluate(
        network,
        batches,
        accelerator,
        num_workers=config.num_workers,
        stop=lambda: loop.stop.received is not None,
    )


@torch.no_grad()
def refresh_statistics(
    network: nn.Module, images: ImageData, indices: Tensor, batch_size: int, accelerator: Accelerator
) -> None:
    """Compute the statistics of all batch norms from training images, without augmentation.

    Running statistics lag behind the weights at a high learning rate, and do not fit averages of weights. Images are
    drawn at random, the same ones in every process and epoch.

    Args:
        network: its buffers change; its mode stays.
        images, indices: the training images, and their indices, [n], int64.
        batch_size: images at a time; statistics are means over whole batches.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, WeightedLayer)]
    norms = [(layer, layer.batch_norm) for layer in layers if layer.batch_norm is not None]
    if not norms:
        return
    size = min(batch_size, len(indices))
    drawn = draw_indices(indices, max(size, min(STATISTICS_IMAGES, len(indices)) // size * size))
    batches = EvaluationBatches(images, drawn, size)
    was_training, before = network.training, [(norm.momentum, layer.statistics_group) for layer, norm in norms]
    network.eval()
    for layer, norm in norms:
        norm.reset_running_stats()
        norm.momentum, layer.statistics_group = 0.0, None  # a mean over all batches
        norm.train()
    try:
        with closing(load_batches(batches, accelerator.device)) as loaded:
            for some, _ in loaded:
                network(some)
    finally:
        for (layer, norm), (momentum, group) in zip(norms, before, strict=True):
            norm.momentum, layer.statistics_group = momentum, group
        network.train(was_training)


def epoch_line(loop: TrainingLoop, evaluation: Evaluation | None) -> EpochLine:
    """The line of metrics.jsonl for the epoch that ends now."""
    position, totals = loop.position, loop.position.totals
    found: dict[str, Any] = {} if loop.target is None else loop.target.after_epoch()
    if evaluation is not None:
        found |= {
            "val_loss": evaluation.loss,
            "val_accuracy": evaluation.accuracy,
            "val_first_spike_accuracy": evaluation.first_spike_accuracy,
            "sparsity": evaluation.sparsity,
            "layer_sparsity": {layer.name: layer.sparsity for layer in evaluation.layers},
        }
    return EpochLine(
        epoch=position.epoch + 1,
        step=position.step,
        lr=loop.learning_rate,
        train_loss=totals.loss / totals.images,
        train_accuracy=totals.correct / totals.images,
        seconds=totals.seconds,
        images_per_second=totals.images / max(totals.seconds, 1e-9),  # a clock may stand still
        rise=None if loop.config.psp_persistence_rise is None else loop.persistence.share,
        **found,
    )


def load_best(network: nn.Module, folder: RunFolder) -> None:
    """Load a run's best weights into its network; RunFolderError if they are damaged or another network's."""
    try:
        load_tensors(network, read_weights(folder.best_weights), folder.best_weights)
    except LoadError as error:
        raise RunFolderError(str(error)) from error


def score_run(loop: TrainingLoop) -> dict[str, Any]:
    """Load the best weights, score the test images once, write and show the summary.

    Returns:
        The final figures, as JSON values.
    """
    network, folder, accelerator = loop.scored_network, loop.folder, loop.accelerator
    load_best(network, folder)
    with counting(network, image_shape=loop.graph.image_shape, histogram_bins=0) as counter:
        # bfloat16 rounds some potentials across the threshold. Test figures are those of the float32 network.
        accelerator.unwrap_model(network, keep_fp32_wrapper=False)
        evaluation = score(loop, loop.test_images)
    if loop.average is not None:
        accelerator.unwrap_model(loop.network, keep_fp32_wrapper=False)
        loop.network.load_state_dict(network.state_dict())
    summary = _make_summary(loop, evaluation, counter.counts(accelerator))
    if accelerator.is_main_process:
        folder.write_summary(summary)
    loop.display.result(summary, evaluation.layers)
    loop.display.say(f"run folder               {folder.path}")
    accelerator.wait_for_everyone()
    return summary.model_dump()


def _make_summary(loop: TrainingLoop, test: Evaluation, counts: Counts) -> Summary:
    config, metrics, target = loop.config, loop.position.metrics, None if loop.target is None else loop.target.target
    best, accuracy = metrics[loop.position.best_epoch - 1], loop.position.best_accuracy
    seconds = max(1e-9, sum(line.seconds for line in metrics))
    return Summary(
        test_accuracy=test.accuracy,
        test_first_spike_accuracy=test.first_spike_accuracy,
        test_images=test.images,
        test_split=loop.data.test.split,
        test_fingerprint=loop.data.test.fingerprint,
        ties=test.ties,
        no_spike=test.no_spike,
        val_accuracy=None if accuracy < 0 else accuracy,
        best_epoch=loop.position.best_epoch,
        weights_sha256=ModelFiles(loop.folder.best_weights, loop.folder.best_config).sha256,
        sparsity=test.sparsity,
        sparsity_as_published=counts.sparsity_as_published,
        # With a target, the best weights are an epoch's, never the start's.
        target=None if target is None else target.result(metrics, best, target.cost.of(counts)),
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
