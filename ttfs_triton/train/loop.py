"""The training loop. A step depends only on the saved tensors, the configuration and the position."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.profiler import record_function

from ttfs_kernels.checks import backend_for
from ttfs_triton.data.placement import place_images
from ttfs_triton.evaluate import Evaluation, EvaluationStopped, sum_over_processes
from ttfs_triton.evaluate.batches import Batch
from ttfs_triton.model.weights import not_finite
from ttfs_triton.nn import TTFSNetwork, collect_statistics, record_statistics, reset_statistics, sparsity
from ttfs_triton.run_records import Change
from ttfs_triton.train.batches import EpochBatches, train_loader
from ttfs_triton.train.build import (
    RunData,
    build_augmentation,
    build_network,
    build_optimizer,
    check_network,
    check_statistics,
    describe,
)
from ttfs_triton.train.callback import Callback, NonFiniteLossError
from ttfs_triton.train.checkpoint import checkpoint_path, load_checkpoint
from ttfs_triton.train.config import TrainConfig
from ttfs_triton.train.device import Interrupted, StopRequest, choose_fusing, fused_passes, share_statistics
from ttfs_triton.train.display import Display, traced_steps
from ttfs_triton.train.evaluation import epoch_line, refresh_statistics, score
from ttfs_triton.train.graphs import GraphedStep, choose_graphs
from ttfs_triton.train.lagrange import TargetTraining
from ttfs_triton.train.optimisation import PersistenceSchedule, rate_factor
from ttfs_triton.train.resume import EpochTotals, Position, RunDescription, read_state, restore_run, save_run
from ttfs_triton.train.run_folder import RunFolder
from ttfs_triton.train.step import TrainStep, look_ahead
from ttfs_triton.train.teacher import load_teacher


class TrainingLoop:
    """One run: trains, evaluates after each epoch, writes checkpoints, and can resume from one.

    Args:
        stop: asks the loop to end at the next step.
        network: the network to train. Default: as configured.
        checkpoint: path of the checkpoint to resume from.
    Attributes:
        network: the bare network; `model` is the distributed, compiled one that is called in training.
        steps, steps_per_epoch: optimiser steps of the run, and of an epoch.
        position: progress, saved with every checkpoint.
        changes: differences at `--resume` that do not change the run's course.
        last_checkpoint: path of the newest checkpoint, for messages.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        data: RunData,
        folder: RunFolder,
        display: Display,
        stop: StopRequest,
        network: nn.Module | None = None,
        callbacks: Sequence[Callback] = (),
        checkpoint: Path | None = None,
    ) -> None:
        self.callbacks, self.checkpoint = callbacks, checkpoint
        self.config, self.accelerator, self.data, self.folder = config, accelerator, data, folder
        self.display, self.stop = display, stop
        counted = len(data.test), config.target and len(data.validation_indices)  # operations, by every process
        if (least := min(filter(None, counted))) < accelerator.num_processes:
            raise ValueError(f"train: each process must have a test and a validation image; got {least}. Use more.")
        # A checkpoint replaces the weights, so that a resumed run need not read and calibrate them again.
        known = read_state(load_checkpoint(checkpoint)).started if checkpoint and config.weights else None
        self.network, self.start = build_network(
            config, data, accelerator.device, network=network, calibrated=checkpoint is None, known=known
        )
        self.graph = check_network(self.network, data)
        self.started = known or (self.start and describe(config, self.network, data, self.start).to_dict())
        teacher = load_teacher(config, data, accelerator)
        self.description = RunDescription.of(config, accelerator, data, self.graph, teacher and teacher.sha256)
        splits, where = place_images((data.train, data.test), accelerator.device, config.data_placement)
        self._train_images, self.test_images = splits
        display.say(where)
        self.position = Position()
        self.changes: list[Change] = []
        self.steps_per_epoch, images = self._batches(0).steps, self._batches(0).micro_batch_size
        check_statistics(self.graph, images * accelerator.num_processes if config.sync_batch_norm else images)
        self.steps = config.epochs * self.steps_per_epoch
        if config.lookahead > self.steps:
            display.say(f"lookahead: weights are not averaged, since the run has only {self.steps} steps")
        self.fuses = choose_fusing(config, accelerator.device, self.graph, self.steps * config.batch_size)
        if self.fuses:
            display.say("passes over neurons are fused: the first steps wait for PyTorch's compiler")
        self.target: TargetTraining | None = None
        if config.target is not None:
            self.target = TargetTraining(config, accelerator, self.network, self.graph, data, self.steps)
        graphs = choose_graphs(config, accelerator, self.graph, display.say)
        # DistributedDataParallel is made on the stream of the capture, since autograd remembers a module's stream.
        with nullcontext() if graphs is None else graphs.aside():
            model = accelerator.prepare_model(self.network if self.target is None else self.target.model)
        self.model = cast(nn.Module, torch.compile(model) if config.compile else model)
        # The bare optimizer is saved; the wrapper around it knows about loss scaling.
        self.bare_optimizer = build_optimizer(config, self.network, accelerator.mixed_precision)
        if self.target is not None:
            self.target.silent_channels.attach(self.bare_optimizer)
        averages = config.ema_decay or 0 < config.lookahead <= self.steps
        # Its step count is on the device: a CUDA graph would read a count on the host only once.
        self.average = AveragedModel(self.network, accelerator.device, use_buffers=True) if averages else None
        if config.sync_batch_norm:
            share_statistics(self.network)  # now, since a group of processes cannot be copied
        networks = [self.network] if self.average is None else [self.network, self.average.module]
        self.persistence = PersistenceSchedule(networks, config.psp_persistence_rise, self.steps, accelerator.device)
        self._rate_factor = rate_factor(config, self.steps)
        optimizer = cast(AcceleratedOptimizer, accelerator.prepare_optimizer(self.bare_optimizer))
        multiplier = None if self.target is None else self.target.multiplier
        followed = None if config.lookahead else self.average
        self._plain_step = TrainStep(
            config, accelerator, self.network, self.model, optimizer, followed, multiplier, teacher
        )
        self._step: TrainStep | GraphedStep = self._plain_step
        if graphs is not None:
            self._step = GraphedStep(self._plain_step, graphs, required=config.cuda_graph == "on", say=display.say)
        self._end_step: Callable[[], None] = lambda: None
        self.last_checkpoint, self._compiled = "none yet", False
        self._started: float | None = None  # time at which the epoch's steps began, less its interruptions

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step, for parameters without a factor of their own."""
        return self.bare_optimizer.param_groups[0]["initial_lr"] * self._rate_factor(self.position.step)

    @property
    def scored_network(self) -> nn.Module:
        """The network that is evaluated and kept: the moving average where there is one."""
        return self.network if self.average is None else self.average.module

    def train(self) -> None:
        """Train to the last epoch."""
        self.display.start(self.steps, self.position.step)
        # A run that was stopped in validation resumes behind its epoch's last step.
        self.persistence.set(max(0, self.position.step - 1))
        traced, folder = self.config.profile if self.accelerator.is_main_process else 0, self.folder.path / "profile"
        try:
            with (
                fused_passes(self.fuses),
                nullcontext() if self.target is None else self.target.model.watching(),
                traced_steps(self.accelerator, self.network, traced, folder, self.display.say) as self._end_step,
            ):
                self._score_start()
                while self.position.epoch < self.config.epochs:
                    self._train_epoch()
                    self._finish_epoch(self._validate())
                    if self._enough():
                        break
        except EvaluationStopped:
            self._stop()
        finally:
            self.display.stop()
        self.persistence.set(self.steps)  # σ is below its goal if a callback ended the run early

    def _enough(self) -> bool:
        """Whether a callback, in any process, asks to end training."""
        line = self.position.metrics[-1].model_dump()
        wishes = [callback.on_epoch(self, line) for callback in self.callbacks]
        asked = torch.tensor([float(any(wishes))], device=self.accelerator.device)
        return bool(sum_over_processes(self.accelerator, asked).item())

    def _batches(self, epoch: int) -> EpochBatches:
        return EpochBatches(
            self._train_images.in_epoch(self.config.seed, epoch),
            self.data.train_indices,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            epoch=epoch,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            accumulation=self.config.gradient_accumulation,
            augmentation=build_augmentation(self.config),
        )

    def _train_epoch(self) -> None:
        config, position = self.config, self.position
        self.model.train()
        device, first, workers = self.accelerator.device, position.step_in_epoch, config.num_workers
        loader = train_loader(self._batches(position.epoch), device, start_step=first, num_workers=workers)
        with closing(loader) as micro_batches:
            self._started = time.perf_counter() - position.totals.seconds
            for _ in range(first, self.steps_per_epoch):
                with record_function("data"):
                    batches = [next(micro_batches) for _ in range(config.gradient_accumulation)]
                self._train_step(batches)
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
                self._end_step()
            self._gather_totals()
            self._started = None

    def _train_step(self, micro_batches: list[Batch]) -> None:
        position, images = self.position, micro_batches[0][0]
        changed = self.persistence.set(position.step)
        if (changed or not self._compiled) and backend_for("train", self.config.backend, images) == "triton":
            from ttfs_kernels.triton.compilation import compile_kernels

            compile_kernels(self.network, images, self.accelerator.autocast(), self.display.say)
        self._compiled = True
        # Dropout included, a step's random numbers follow from its position: a resumed run draws the same ones.
        torch.manual_seed(position.random_seed(self.config.seed, self.accelerator.process_index))
        sampled = position.step % self.config.statistics_steps == 0
        if changed and isinstance(self._step, GraphedStep):
            self._step.forget()
        first = position.step == 0
        if self.target is not None:
            first |= self.target.prepare(position.step, self.learning_rate / self.config.lr)
        factor = self._rate_factor(position.step)
        for group in self.bare_optimizer.param_groups:
            rate = group["initial_lr"] * factor
            if isinstance(group["lr"], torch.Tensor):  # a captured step reads the rate from there
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._step(micro_batches, sampled=sampled, first=first)
        if self.average is not None:
            self.average.n_averaged.mul_(not first).add_(1)  # a new average warms up anew
        if self.average is not None and self.config.lookahead and (position.step + 1) % self.config.lookahead == 0:
            progress = (position.step + 1) / self.steps
            look_ahead(self.average.module, self.network, self.config.lookahead, progress)

    def _read_sums(self) -> list[float]:
        """Loss, right answers and images of the epoch so far, over all processes; raises if a step was cancelled."""
        sums = torch.cat([self._plain_step.sums, self._plain_step.guard.cancelled.view(1)])
        *read, cancelled = sum_over_processes(self.accelerator, sums).tolist()
        if cancelled:
            self._refuse_non_finite()
        scaler = self.accelerator.scaler  # halves its scale, 65,536 at first, at each step that it skips
        if scaler is not None and scaler.get_scale() < 1:
            raise NonFiniteLossError(
                f"step {self.position.step}: gradients are not finite in fp16, even unscaled, and steps are skipped. "
                f"Last good checkpoint: {self.last_checkpoint}. Use --mixed-precision bf16 or no."
            )
        if self._started is not None:  # only here has the GPU finished all its queued work
            self.position.totals.seconds = time.perf_counter() - self._started
        return read

    def _refuse_non_finite(self) -> None:
        """Raise NonFiniteLossError for the first cancelled step, with the layers' activity on its images."""
        config, accelerator = self.config, self.accelerator
        ago = max(0, int(self._plain_step.guard.cancelled.item()) - 1)  # 0 where only other processes cancelled it
        step, step_in_epoch = self.position.step - ago, self.position.step_in_epoch - ago
        images, _ = self._batches(self.position.epoch)[step_in_epoch * config.gradient_accumulation - 1]
        reset_statistics(self.network)
        with torch.no_grad(), record_statistics(self.network), accelerator.autocast():
            self.network(images.to(accelerator.device))
        layers = "\n".join(
            f"  {layer.name}: active {layer.sparsity:.2%}, saturated {layer.saturated_share:.2%}, "
            f"silent {layer.silent_share:.2%}"
            for layer in collect_statistics(self.network)
        )
        loss, norm = self._plain_step.guard.loss.item(), self._plain_step.guard.norm.item()
        raise NonFiniteLossError(
            f"step {step} (epoch {self.position.epoch + 1}): loss {loss}, gradient norm {norm}; stopped "
            f"before the update.\n{layers}\nLast good checkpoint: {self.last_checkpoint}. "
            "A lower --lr or --gradient-clip 1 usually helps."
        )

    def _report(self) -> None:
        loss, correct, images = self._read_sums()
        layers = collect_statistics(self.network)
        # Sparsity comes from this process's last sampled step; evaluations give exact figures.
        figures = {
            "loss": loss / images,
            "accuracy": correct / images,
            "lr": self.learning_rate,
            "sparsity": sparsity(layers),
            "images_per_second": images / max(self.position.totals.seconds, 1e-9),
        }
        self.accelerator.log({f"train/{key}": value for key, value in figures.items()}, step=self.position.step)
        self.display.update(
            f"epoch {self.position.epoch + 1}/{self.config.epochs}",
            self.position.step,
            f"{figures['images_per_second']:.0f} images/s  loss {figures['loss']:.3f}  "
            f"accuracy {figures['accuracy']:.1%}  sparsity {figures['sparsity']:.3f}",
        )

    def _gather_totals(self) -> None:
        loss, correct, images = self._read_sums()
        totals = self.position.totals
        totals.loss, totals.correct, totals.images = loss, int(correct), int(images)

    def _score_start(self) -> None:
        """Before the first step, score trained weights as epoch 0, and keep them until an epoch is at least as good."""
        config, indices = self.config, self.data.validation_indices
        # With a target or a rising σ, accuracy alone does not say which weights are the best.
        by_accuracy = config.target is None and config.psp_persistence_rise is None
        if self.position.step or config.weights is None or not by_accuracy or not len(indices):
            return
        evaluation = score(self, self._train_images, indices)  # statistics of batch norm stay those of the weights
        self._write_best()
        self.position.best_accuracy = evaluation.accuracy
        self.display.say(f"start: val {evaluation.accuracy:.2%}, sparsity {evaluation.sparsity:.3f}")

    def _validate(self) -> Evaluation | None:
        # Batches as in training, whatever the number of processes and the batch size of scoring.
        size = min(500, self.config.batch_size // self.config.gradient_accumulation)
        refresh_statistics(self.scored_network, self._train_images, self.data.train_indices, size, self.accelerator)
        self._require_finite_weights()
        indices = self.data.validation_indices
        if self.target is not None:
            return self.target.validate(partial(score, self, self._train_images), self.scored_network)
        return score(self, self._train_images, indices) if len(indices) else None

    def _finish_epoch(self, evaluation: Evaluation | None) -> None:
        position = self.position
        # An epoch in which σ has not reached its goal is never better than a later one.
        miss = 1 - self.persistence.share + (0.0 if self.target is None else self.target.miss)
        best = evaluation is None or position.is_best(evaluation.accuracy, miss)
        line = epoch_line(self, evaluation)
        if best:
            position.best_epoch = position.epoch + 1
        if best and evaluation is not None:
            position.best_accuracy, position.best_miss = evaluation.accuracy, miss
        position.metrics.append(line)
        position.epoch += 1
        position.step_in_epoch, position.totals = 0, EpochTotals()
        self._plain_step.sums.zero_()
        # Written before the checkpoint that names their epoch: a kill in between only repeats the epoch.
        if best:
            self._write_best()
        self.save()
        if self.accelerator.is_main_process:
            self.folder.write_metrics(position.metrics)
        scalars = {f"epoch/{key}": value for key, value in line.model_dump().items() if isinstance(value, int | float)}
        self.accelerator.log(scalars, step=position.step)
        self.display.epoch(line, self.config.epochs, best, [] if evaluation is None else evaluation.layers)

    def _write_best(self) -> None:
        if self.accelerator.is_main_process:
            with self.persistence.at_goal():
                description = describe(self.config, self.scored_network, self.data, self.start)
            self.folder.write_best(self.scored_network.state_dict(), description)

    def _require_finite_weights(self) -> None:
        """Raise if the weights to be saved are not finite; averages may not be even if every loss was finite."""
        if problem := not_finite(self.scored_network.state_dict()):
            raise NonFiniteLossError(
                f"epoch {self.position.epoch + 1}: the scored weights must be finite; got {problem}. They were not "
                f"saved. Last good checkpoint: {self.last_checkpoint}. A lower --lr usually helps."
            )

    def _stop(self) -> None:
        self.save()
        received = self.stop.received
        raise Interrupted(
            f"{received.name if received else 'another process'} received: stopped after step {self.position.step} "
            f"(epoch {self.position.epoch + 1}), checkpoint {self.last_checkpoint}.",
            received,
        )

    def save(self) -> None:
        """Write a checkpoint; all processes call it, between two steps."""
        self._gather_totals()
        if self.accelerator.is_main_process:
            save_run(self)
        self.accelerator.wait_for_everyone()
        self.last_checkpoint = str(checkpoint_path(self.folder.checkpoints, self.position.step))

    def resume(self) -> None:
        """Restore the checkpoint, if the run resumes from one."""
        if self.checkpoint is not None:
            restore_run(self, self.checkpoint)
            self.last_checkpoint = str(self.checkpoint)
            if self.position.best_epoch or self.position.best_accuracy >= 0:
                self.folder.check_best(None if isinstance(self.network, TTFSNetwork) else self.network)
            if self.accelerator.is_main_process:
                totals = self.position.totals
                sums = [totals.loss, totals.correct, totals.images]
                self._plain_step.sums += torch.tensor(sums, dtype=torch.float64, device=self._plain_step.sums.device)
                self.folder.write_metrics(self.position.metrics)
        if self.accelerator.is_main_process and self.config.resume:
            self.folder.record(self.config)
