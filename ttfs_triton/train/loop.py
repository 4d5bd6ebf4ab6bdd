"""The course of a run: epochs of steps, validation, checkpoints, and the score of the test images at the end."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ttfs_kernels import fuse_passes
from ttfs_triton.data.decode import DataLostError
from ttfs_triton.data.images import place_images
from ttfs_triton.energy import Counts
from ttfs_triton.evaluate import Evaluation, EvaluationStopped, device_name, sum_over_processes, versions
from ttfs_triton.nn import TTFSNetwork, collect_statistics, sparsity
from ttfs_triton.run_records import Summary
from ttfs_triton.train.build import build_network, check_network, check_statistics, describe, load_teacher
from ttfs_triton.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    EpochTotals,
    Position,
    RunDescription,
    RunState,
    check_same_run,
    checkpoint_path,
    save_checkpoint,
)
from ttfs_triton.train.config import TrainConfig
from ttfs_triton.train.data import RunData, train_loader, trained_on_held_out
from ttfs_triton.train.device import Interrupted, StopRequest, choose_fusing, freed_memory_kept
from ttfs_triton.train.display import Display
from ttfs_triton.train.learner import Learner
from ttfs_triton.train.run_folder import RunFolder


class Callback:
    """Base class of callbacks: override some methods. Every process of a run calls every method.

    Example:
        >>> class StopAt(Callback):
        ...     def __init__(self, accuracy):
        ...         self.accuracy = accuracy
        ...     def on_epoch(self, loop, line):
        ...         return line["val_accuracy"] >= self.accuracy  # True ends training
    """

    def on_start(self, loop: TrainingLoop) -> None:
        """Called before training begins or resumes. `loop` has network, graph, data, config, position and learner."""

    def on_step(self, loop: TrainingLoop) -> None:
        """Called after every optimiser step. Reading a tensor's value here makes a GPU wait for the host."""

    def on_epoch(self, loop: TrainingLoop, line: Mapping[str, Any]) -> bool | None:
        """Called after every epoch; `line` is its line in metrics.jsonl. Return True to make this epoch the last."""

    def on_end(self, loop: TrainingLoop, summary: Mapping[str, Any]) -> None:
        """Called after the test images were scored; `summary` is the content of summary.json."""


class TrainingLoop:
    """One run: trains, evaluates after every epoch, writes checkpoints, and can resume from one.

    Attributes:
        learner: the network in training, with all that its steps change.
        steps, steps_per_epoch: optimiser steps of the run, and of an epoch.
        position: progress, saved with every checkpoint.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        data: RunData,
        folder: RunFolder,
        display: Display,
        network: nn.Module | None = None,
        callbacks: Sequence[Callback] = (),
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.callbacks, self._checkpoint, self.resumed = callbacks, checkpoint, checkpoint is not None
        self.config, self.accelerator, self.data, self.folder = config, accelerator, data, folder
        self.display, self.stop = display, StopRequest(accelerator)
        counted = len(data.test), config.target and len(data.validation_indices)  # operations, by every process
        if (least := min(filter(None, counted))) < accelerator.num_processes:
            raise ValueError(f"train: every process must have a test and a validation image; got {least}. Use more.")
        # A checkpoint replaces the weights, so that a resumed run need not read and calibrate them again.
        started = checkpoint.state.started if checkpoint and config.weights else None
        self.network, self.start = build_network(
            config, data, accelerator.device, network=network, calibrated=not self.resumed, started=started
        )
        self.graph = check_network(self.network, data)
        self.started = started or (self.start and describe(config, self.network, data, self.start).to_dict())
        teacher = load_teacher(config, data, accelerator)
        self.description = RunDescription(
            configuration=config.model_dump(mode="json", exclude={"resume", "overwrite"}),
            precision=accelerator.mixed_precision,
            data=data.train.fingerprint,
            test_data=data.test.fingerprint,
            layers=None if config.network is None else self.graph.describe(),
            teacher=teacher and teacher.sha256,
        )
        (train, test), where = place_images((data.train, data.test), accelerator.device, config.data_placement)
        self._placed = replace(data, train=train, test=test)
        display.say(where)
        self.position = Position()
        first = self._placed.epoch(0, config, accelerator)
        self.steps_per_epoch, images = first.steps, first.micro_batch_size
        check_statistics(self.graph, images * accelerator.num_processes if config.sync_batch_norm else images)
        self.steps = config.epochs * self.steps_per_epoch
        self.fuses = choose_fusing(config, accelerator.device, self.graph, self.steps * config.batch_size)
        if self.fuses:
            display.say("passes over neurons are fused: the first steps wait for PyTorch's compiler")
        stopping, network = lambda: self.stop.received is not None, self.network
        self.learner = Learner(
            config, accelerator, network, self.graph, data, self.steps, teacher, stopping, display.say
        )
        self._started: float | None = None  # when the epoch's steps began, moved later by interruptions

    def run(self, name: str) -> dict[str, Any]:
        """Train, from the start or from a checkpoint, and score the test images; returns the final figures."""
        config, accelerator, folder = self.config, self.accelerator, self.folder
        if accelerator.is_main_process:
            folder.prepare(config)
        accelerator.wait_for_everyone()
        accelerator.project_configuration.logging_dir = str(folder.path / "trackers")
        keys = config.model_dump(mode="json").items()
        accelerator.init_trackers(
            name, {key: v if isinstance(v, int | float | str) else json.dumps(v) for key, v in keys}
        )
        self.resume()
        self._announce()
        for callback in self.callbacks:
            callback.on_start(self)
        try:
            # On a CPU, the process keeps memory that a step frees for the next step.
            with self.stop, freed_memory_kept() if accelerator.device.type == "cpu" else nullcontext():
                self.train()
                summary = self._score_test().model_dump()
        except DataLostError:
            if accelerator.num_processes == 1:  # several processes would wait for each other
                self.save()
            raise
        for callback in self.callbacks:
            callback.on_end(self, summary)
        return summary

    def _announce(self) -> None:
        """Show network, data, device and folder of the run."""
        say, config, data, graph = self.display.say, self.config, self.data, self.graph
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        sigmas = ", ".join(f"{value:g}" for value in graph.persistences)
        say(
            f"{config.network or config.model} ({parameters:,} parameters, σ = {sigmas}) on {data.train.name}: "
            f"{len(data.train_indices):,} training, {len(data.validation_indices):,} validation, "
            f"{len(data.test):,} test images"
        )
        if not len(data.validation_indices):
            say(
                "no validation images: epochs report training images only, and the last epoch's weights are kept. "
                "--validation-fraction 0.1 sets some images aside"
            )
        if self.start is not None and self.start.calibration is not None:
            self.display.console.print(self.start.calibration.table())
        precision, count = self.accelerator.mixed_precision, self.accelerator.num_processes
        precision = "float32" if precision == "no" else precision
        where = f"{device_name(self.accelerator.device)}, {precision}, {count} process{'es' if count > 1 else ''}"
        start = f"resumed after step {self.position.step}" if self.resumed else f"{config.epochs} epochs"
        say(f"{where}, {start}, run folder {self.folder.path}")

    def train(self) -> None:
        """Train to the last epoch."""
        learner, position = self.learner, self.position
        self.display.start(self.steps, position.step)
        # A run that was stopped during validation resumes after the last step of its epoch.
        learner.persistence.set(max(0, position.step - 1))
        try:
            fuse_passes(self.fuses)
            with nullcontext() if learner.target is None else learner.target.model.watching():
                self._score_start()
                while position.epoch < self.config.epochs and not position.ended:
                    self._train_epoch()
                    self._finish_epoch(learner.validate(self._placed, position.epoch + 1))
                    line = position.metrics[-1].model_dump()
                    wishes = [callback.on_epoch(self, line) for callback in self.callbacks]
                    asked = torch.tensor([float(any(wishes))], device=self.accelerator.device)
                    if sum_over_processes(self.accelerator, asked).item():
                        position.ended = True
                        self.save()
        except EvaluationStopped:
            self._stop()
        finally:
            fuse_passes(False)
            self.display.progress.stop()
        learner.persistence.set(self.steps)  # σ is below its goal if a callback ended the run early

    def _train_epoch(self) -> None:
        config, position, learner = self.config, self.position, self.learner
        learner.model.train()
        device, first = self.accelerator.device, position.step_in_epoch
        batches = self._placed.epoch(position.epoch, config, self.accelerator)
        with closing(train_loader(batches, device, start_step=first, num_workers=config.num_workers)) as micro_batches:
            self._started = time.perf_counter() - position.totals.seconds
            for _ in range(first, self.steps_per_epoch):
                learner.step([next(micro_batches) for _ in range(config.gradient_accumulation)], position.step)
                position.step += 1
                position.step_in_epoch += 1
                if position.step % config.log_steps == 0:
                    self._report()
                for callback in self.callbacks:
                    callback.on_step(self)
                if self.stop.due(position.step, config.log_steps):
                    self._stop()
                if config.checkpoint_steps and position.step % config.checkpoint_steps == 0:
                    self.save()
            self._read_totals()
            self._started = None

    def _read_totals(self) -> EpochTotals:
        """The sums of the epoch so far, over all processes; raises if a step was cancelled."""
        position, totals = self.position, self.position.totals
        (totals.loss, correct, images), ago = self.learner.read_sums(position.step)
        if ago is not None:
            batches = self._placed.epoch(position.epoch, self.config, self.accelerator)
            failed, _ = batches[(position.step_in_epoch - ago) * self.config.gradient_accumulation - 1]
            raise self.learner.failure(f"step {position.step - ago} (epoch {position.epoch + 1})", failed)
        totals.correct, totals.images = int(correct), int(images)
        if self._started is not None:  # only here has the GPU finished all its queued work
            totals.seconds = time.perf_counter() - self._started
        return totals

    def _report(self) -> None:
        position, totals = self.position, self._read_totals()
        # Sparsity comes from this process's last sampled step; evaluations give exact figures.
        figures = {
            "loss": totals.loss / totals.images,
            "accuracy": totals.correct / totals.images,
            "lr": self.learner.learning_rate(position.step),
            "sparsity": sparsity(collect_statistics(self.network)),
            "images_per_second": totals.images / max(totals.seconds, 1e-9),
        }
        self.accelerator.log({f"train/{key}": value for key, value in figures.items()}, step=position.step)
        self.display.update(
            f"epoch {position.epoch + 1}/{self.config.epochs}",
            position.step,
            f"{figures['images_per_second']:.0f} images/s  loss {figures['loss']:.3f}  "
            f"accuracy {figures['accuracy']:.1%}  sparsity {figures['sparsity']:.3f}",
        )

    def _score_start(self) -> None:
        """Before the first step, score given weights as epoch 0, and keep them until an epoch is at least as good."""
        config, indices = self.config, self.data.validation_indices
        # With a target, faults or a rising σ, accuracy alone does not say which weights are the best.
        by_accuracy = config.target is None and config.psp_persistence_rise is None and not config.faults
        if self.position.step or config.weights is None or not by_accuracy or not len(indices):
            return
        if other := trained_on_held_out(config):
            self.display.say(f"start: not scored, since its run held out other images ({other})")
            return
        evaluation = self.learner.score(self._placed.train, indices)  # batch norms keep the statistics of the weights
        self._write_best()
        self.position.best_accuracy = evaluation.accuracy
        self.display.say(f"start: val {evaluation.accuracy:.2%}, sparsity {evaluation.sparsity:.3f}")

    def _finish_epoch(self, evaluation: Evaluation | None) -> None:
        position = self.position
        figures, miss = self.learner.end_epoch(position.step, evaluation)
        best = position.end_epoch(figures, figures.get("val_accuracy"), miss)
        # The best weights come before the checkpoint that names their epoch: a kill in between only repeats the epoch.
        if best:
            self._write_best()
        self.save()
        if self.accelerator.is_main_process:
            self.folder.write_metrics(position.metrics)
        line = position.metrics[-1]
        scalars = {f"epoch/{key}": value for key, value in line.model_dump().items() if isinstance(value, int | float)}
        self.accelerator.log(scalars, step=position.step)
        self.display.epoch(line, self.config.epochs, best, [] if evaluation is None else evaluation.layers)

    def _write_best(self) -> None:
        if self.accelerator.is_main_process:
            scored = self.learner.scored_network
            with self.learner.persistence.at_goal():
                description = describe(self.config, scored, self.data, self.start)
            self.folder.write_best(scored.state_dict(), description)

    def _score_test(self) -> Summary:
        """Load the best weights, score the test images once, write and show the summary."""
        self.folder.load_best(self.learner.scored_network)
        try:
            evaluation, counts = self.learner.score_test(self._placed)
        except EvaluationStopped:
            raise Interrupted("Stopped while scoring the test images.", self.stop.received) from None
        summary = self._summary(evaluation, counts)
        if self.accelerator.is_main_process:
            self.folder.write_summary(summary)
        self.display.result(summary, evaluation.layers)
        self.display.say(f"run folder               {self.folder.path}")
        self.accelerator.wait_for_everyone()
        return summary

    def _summary(self, test: Evaluation, counts: Counts) -> Summary:
        position, metrics = self.position, self.position.metrics
        target = self.learner.target and self.learner.target.target
        seconds = max(1e-9, sum(line.seconds for line in metrics))
        return Summary(
            test_accuracy=test.accuracy,
            test_first_spike_accuracy=test.first_spike_accuracy,
            test_images=test.images,
            test_split=self.data.test.split,
            test_fingerprint=self.data.test.fingerprint,
            ties=test.ties,
            no_spike=test.no_spike,
            val_accuracy=None if position.best_accuracy < 0 else position.best_accuracy,
            best_epoch=position.best_epoch,
            weights_sha256=hashlib.sha256(self.folder.best_weights.read_bytes()).hexdigest(),
            sparsity=test.sparsity,
            sparsity_as_published=counts.sparsity_as_published,
            # With a target, the best weights are those of an epoch, never those of the start.
            target=target and target.result(metrics[position.best_epoch - 1], target.cost.of(counts)),
            counts=counts.to_dict(),
            epochs=len(metrics),
            seconds_per_epoch=seconds / len(metrics),
            images_per_second=len(metrics) * self.steps_per_epoch * self.config.batch_size / seconds,
            seed=self.config.seed,
            skipped_images={"train": self.data.train.skipped, "test": self.data.test.skipped},
            versions=versions(),
            device=device_name(self.accelerator.device),
            processes=self.accelerator.num_processes,
            mixed_precision=self.accelerator.mixed_precision,
        )

    def _stop(self) -> None:
        self.save()
        received = self.stop.received
        raise Interrupted(
            f"{received.name if received else 'another process'} received: stopped after step {self.position.step} "
            f"(epoch {self.position.epoch + 1}), checkpoint {self.folder.last_checkpoint}.",
            received,
        )

    def save(self) -> None:
        """Write a checkpoint; all processes call it, between two steps."""
        self._read_totals()
        path, target, scaler = self.folder.checkpoints, self.learner.target, self.accelerator.scaler
        if self.accelerator.is_main_process:
            state = RunState(
                **dict(self.description),
                position=self.position,
                scaler=None if scaler is None else scaler.state_dict(),
                processes=self.accelerator.num_processes,
                started=self.started,
                held_layers=None if target is None else target.silent_channels.layers,
            )
            save_checkpoint(path, state, self.learner.tensors(), keep_last=self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        self.folder.last_checkpoint = str(checkpoint_path(path, self.position.step))

    def resume(self) -> None:
        """Restore the checkpoint, if the run resumes from one."""
        checkpoint, self._checkpoint = self._checkpoint, None  # its tensors take memory
        if checkpoint is not None:
            check_same_run(checkpoint, self.config, self.description)
            self.position = checkpoint.state.position
            self.position.ended = checkpoint.state.ended(self.config)
            before, now = checkpoint.state.processes, self.accelerator.num_processes
            if before not in (None, now):
                self.display.say(
                    f"warning: the run goes on with {now} processes instead of {before}, which changes what batch norm "
                    "(without --sync-batch-norm), dropout and faults do"
                )
            try:
                self.learner.restore(checkpoint.state, checkpoint.tensors)
                if not self.position.fits(self.steps_per_epoch):
                    raise ValueError(f"its position does not fit {self.steps_per_epoch} steps per epoch")
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"load_checkpoint: {checkpoint.path} must hold this run's state; {type(error).__name__}: "
                    f"{error!s:.400}. Delete it: --resume takes an earlier one."
                ) from error
            del checkpoint
            if self.position.best_epoch or self.position.best_accuracy >= 0:
                self.folder.check_best(None if isinstance(self.network, TTFSNetwork) else self.network)
            if self.accelerator.is_main_process:
                totals, sums = self.position.totals, self.learner.sums
                sums += torch.tensor([totals.loss, totals.correct, totals.images], dtype=sums.dtype, device=sums.device)
                self.folder.write_metrics(self.position.metrics)
        if self.accelerator.is_main_process and self.config.resume:
            self.folder.record(self.config)
