"""What a run says of itself: a line when it begins, the score of its best weights and the final figures at its end."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ttfs_triton.hardware import Counts, counting
from ttfs_triton.model.weights import LoadError, read_weights_into
from ttfs_triton.scoring import Evaluation, device_name, versions
from ttfs_triton.train.loop import TrainingLoop
from ttfs_triton.train.run_folder import RunFolderError


def announce(trainer: TrainingLoop, resumed: bool) -> None:
    """Say what is trained, on what, where."""
    config, data, display = trainer.config, trainer.data, trainer.display
    parameters = sum(p.numel() for p in trainer.network.parameters())
    found = ", ".join(f"{value:g}" for value in trainer.graph.persistences)
    display.say(
        f"{config.network or config.model} ({parameters:,} parameters, σ = {found}) on {data.train.name}: "
        f"{len(data.train_indices):,} training, {len(data.validation_indices):,} validation, "
        f"{len(data.test):,} test images"
    )
    processes = trainer.accelerator.num_processes
    where = f"{device_name(trainer.accelerator.device)}{f' × {processes}' if processes > 1 else ''}"
    start = f"resumed after step {trainer.position.step}" if resumed else f"{config.epochs} epochs"
    for change in trainer.changes if resumed else ():
        display.say(f"changed on --resume      {change}")
    if trainer.start is not None and trainer.start.calibration is not None:
        display.console.print(trainer.start.calibration.table())
    if trainer.graph.grid is not None:
        display.say(f"on the grid of a chip: {trainer.graph.grid.text()}")
    if config.faults:
        display.say(f"for chips with faults: {config.faults.text()}")
    display.say(f"{where}, {start}, run folder {trainer.folder.path}")


def score(trainer: TrainingLoop) -> dict[str, Any]:
    """Load the best weights, score the test images once, write the summary."""
    network, folder, accelerator = trainer.scored_network, trainer.folder, trainer.accelerator
    try:
        read_weights_into(network, folder.best_weights)
    except LoadError as error:
        raise RunFolderError(str(error)) from error
    shape = trainer.graph.image_shape
    with counting(network, image_shape=shape, histogram_bins=0, by_sample=False) as counter:
        evaluation = trainer.score_test_images(network)
    if trainer.average is not None:
        trainer.network.load_state_dict(network.state_dict())
    summary = make_summary(trainer, evaluation, counter.counts(accelerator))
    if accelerator.is_main_process:
        folder.write_summary(summary)
    trainer.display.result(summary, evaluation.layers)
    trainer.display.say(f"run folder               {folder.path}")
    accelerator.wait_for_everyone()
    return summary


def make_summary(trainer: TrainingLoop, test: Evaluation, counts: Counts) -> dict[str, Any]:
    """Final figures of a run, as JSON values."""
    config, metrics = trainer.config, trainer.position.metrics
    best = metrics[trainer.position.best_epoch - 1]
    seconds = sum(line["seconds"] for line in metrics)
    images = len(metrics) * trainer.steps_per_epoch * config.batch_size
    return {
        "test_accuracy": test.accuracy,
        "test_first_spike_accuracy": test.first_spike_accuracy,
        "test_images": test.images,
        "test_fingerprint": trainer.data.test.fingerprint,
        "ties": test.ties,
        "no_spike": test.no_spike,
        "val_accuracy": best.get("val_accuracy"),
        "best_epoch": trainer.position.best_epoch,
        "sparsity": test.sparsity,
        "sparsity_with_outputs": test.sparsity_with_outputs,
        "sparsity_as_published": counts.sparsity_as_published,
        "target": None if trainer.steering is None else trainer.steering.result(metrics, best, counts),
        "counts": counts.to_dict(),
        "epochs": len(metrics),
        "seconds_per_epoch": seconds / len(metrics),
        "images_per_second": images / seconds,
        "seed": config.seed,
        "skipped_images": {"train": trainer.data.train.skipped, "test": trainer.data.test.skipped},
        "versions": versions(),
        "device": device_name(trainer.accelerator.device),
        "processes": trainer.accelerator.num_processes,
        "mixed_precision": trainer.accelerator.mixed_precision,
        "changes": [asdict(change) for change in trainer.changes],
    }
