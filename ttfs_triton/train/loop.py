"""The training loop. All that a step depends on is a function of the weights, the configuration and the position."""

import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ttfs_triton.model import ModelDescription
from ttfs_triton.nn import TTFSNetwork, collect_statistics, record_statistics, reset_statistics, sparsity
from ttfs_triton.scoring import Evaluation, EvaluationBatches, EvaluationStopped, evaluate, sum_over_processes
from ttfs_triton.scoring.batches import Batch
from ttfs_triton.train.batches import EpochBatches, train_loader
from ttfs_triton.train.build import (
    RunData,
    build_augmentation,
    build_network,
    build_optimizer,
    build_schedule,
    tune_kernels,
)
from ttfs_triton.train.checkpoint import checkpoint_name, latest_checkpoint, load_checkpoint, save_checkpoint
from ttfs_triton.train.config import TrainConfig
from ttfs_triton.train.display import Display
from ttfs_triton.train.identity import Change, compare, identity
from ttfs_triton.train.processes import Interrupted, StopRequest
from ttfs_triton.train.run_folder import RunFolder
from ttfs_triton.train.states import EpochTotals, Position, pack_optimizer, unpack_optimizer
from ttfs_triton.train.update import FiniteGuard, make_average, update_average


class NonFiniteLossError(RuntimeError):
    """Loss or gradient became infinite or not a number; no update was made from that step on."""


class Trainer:
    """One run: trains, evaluates after each epoch, checkpoints, and can go on from any of its checkpoints.

    Args:
        config: the run.
        accelerator: processes, device, precision, trackers.
        data: images and splits.
        folder: prepared for this run.
        display: what to show.
        stop: asks the loop to end at the next step.
    Attributes:
        network: the bare network; `model` is what is called in training (distributed, compiled).
        position: progress, saved with every checkpoint.
        changes: what continuations did otherwise, without changing the run's course.
        last_checkpoint: path of the newest one, for messages.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        data: RunData,
        folder: RunFolder,
        display: Display,
        stop: StopRequest,
    ) -> None:
        self.config, self.accelerator, self.data, self.folder = config, accelerator, data, folder
        self.display, self.stop = display, stop
        # A checkpoint replaces the weights, so that a resumed run need not calibrate them again.
        fresh = not config.resume or latest_checkpoint(folder.checkpoints) is None
        self.network, self.start = build_network(config, data, accelerator.device, calibrated=fresh)
        model = accelerator.prepare_model(self.network)
        self.model = cast(nn.Module, torch.compile(model) if config.compile else model)
        # The bare optimizer steps the schedule and is saved; the wrapper around it knows about loss scaling.
        self.bare_optimizer = build_optimizer(config, self.network)
        self.average: AveragedModel | None = None
        if config.ema_decay:
            self.average = make_average(self.network, config.ema_decay)
        self.position = Position()
        self.changes: list[Change] = []
        self.steps_per_epoch = self._batches(0).steps
        # Before the wrapper, which in fp16 puts the step that it finds now in the place of the one that counts calls.
        self.schedule = build_schedule(self.bare_optimizer, config, self.steps_per_epoch)
        self.optimizer = accelerator.prepare_optimizer(self.bare_optimizer)
        self._guard = FiniteGuard(self.bare_optimizer, accelerator.device)
        self._sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)  # loss, correct, images
        self.last_checkpoint = "none yet"

    @property
    def scored_network(self) -> TTFSNetwork:
        """The network that is evaluated and kept: the moving average where there is one."""
        return self.network if self.average is None else self.average.module  # type: ignore[return-value]

    def train(self) -> None:
        """Train to the last epoch.

        Raises:
            Interrupted: a signal asked to stop; a checkpoint has been written.
            NonFiniteLossError: no update was made from the failing step on.
        """
        total = self.config.epochs * self.steps_per_epoch
        tune_kernels(self.network, self.accelerator, self._batches(0).micro_batch_size, self.display.say)
        self.display.start(total, self.position.step)
        try:
            while self.position.epoch < self.config.epochs:
                self._train_epoch()
                self._finish_epoch(self._validate())
        except EvaluationStopped:
            self._stop()
        finally:
            self.display.stop()

    def _batches(self, epoch: int) -> EpochBatches:
        return EpochBatches(
            self.data.train.in_epoch(self.config.seed, epoch),
            self.data.train_indices,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            epoch=epoch,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            accumulation=self.config.gradient_accumulation,
            augmentation=build_augmentation(self.config),
            classes=len(self.data.train.class_names),
        )

    def _train_epoch(self) -> None:
        config, position = self.config, self.position
        self.model.train()
        loader = train_loader(
            self._batches(position.epoch),
            position.step_in_epoch,
            config.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        micro_batches = iter(loader)
        started = time.perf_counter()
        already = position.totals.seconds
        for _ in range(position.step_in_epoch, self.steps_per_epoch):
            self._train_step([next(micro_batches) for _ in range(config.gradient_accumulation)])
            position.step += 1
            position.step_in_epoch += 1
            position.totals.seconds = already + time.perf_counter() - started
            if position.step % config.log_steps == 0:
                self._report()
            if self.stop.everywhere():
                self._stop()
            if config.checkpoint_steps and position.step % config.checkpoint_steps == 0:
                self.save()
        self._gather_totals()

    def _train_step(self, micro_batches: list[Batch]) -> None:
        config, accelerator, device = self.config, self.accelerator, self.accelerator.device
        # Dropout included, a step's random numbers follow from its position: a resumed run draws the same ones.
        torch.manual_seed(_mix(config.seed, self.position.step, accelerator.process_index))
        self.optimizer.zero_grad()
        sampled = self.position.step % config.statistics_steps == 0
        if sampled:
            reset_statistics(self.network)
        loss_sum = torch.zeros((), device=device)
        for index, (images, labels) in enumerate(micro_batches):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            last = index == len(micro_batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                with record_statistics(self.network) if sampled else nullcontext():
                    logits = self.model(images)
                loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
                accelerator.backward(loss / len(micro_batches))
            loss_sum += loss.detach()
            # Of mixed images the class with the largest share counts.
            correct = (logits.detach().argmax(1) == (labels if labels.dim() == 1 else labels.argmax(1))).sum()
            self._sums += torch.stack([loss.detach() * len(labels), correct, torch.full_like(correct, len(labels))])
        self._watch(loss_sum)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            update_average(self.average, self.network)

    def _watch(self, loss: Tensor) -> None:
        """Clip the gradient if asked to, and cancel the update if it or the loss is not finite."""
        config, accelerator = self.config, self.accelerator
        scaled = accelerator.scaler is not None  # fp16: infinite gradients are part of finding the scale
        if config.gradient_clip is not None:
            norm = accelerator.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
            assert norm is not None  # None is for DeepSpeed and the like
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        # The gradient is the mean over processes, so all see the same norm; a loss alone would differ.
        verdict = loss if scaled else loss + 0 * norm
        failed = ~torch.isfinite(verdict)
        if scaled and accelerator.num_processes > 1:
            failed = sum_over_processes(accelerator, failed.float()) > 0
        self._guard.watch(loss, norm, failed)

    def _read_sums(self) -> list[float]:
        """Loss, right answers and images of the epoch so far, over all processes. Here the host waits for the device.

        Raises:
            NonFiniteLossError: a step since the last reading was cancelled.
        """
        sums = torch.cat([self._sums, self._guard.cancelled.view(1)])
        *read, cancelled = sum_over_processes(self.accelerator, sums).tolist()
        if cancelled:
            self._refuse_non_finite()
        return read

    def _refuse_non_finite(self) -> None:
        """Tell of the first step that was cancelled, and of the layers' activity with its images and weights."""
        config, accelerator = self.config, self.accelerator
        ago = max(0, int(self._guard.cancelled.item()) - 1)  # 0 where other processes alone know of it
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
        loss, norm = self._guard.loss.item(), self._guard.norm.item()
        raise NonFiniteLossError(
            f"step {step} (epoch {self.position.epoch + 1}): loss {loss}, gradient norm {norm}; stopped "
            f"before the update.\n{layers}\nLast good checkpoint: {self.last_checkpoint}. "
            "A lower --lr or --gradient-clip 1 usually helps."
        )

    def _report(self) -> None:
        loss, correct, images = self._read_sums()
        layers = collect_statistics(self.network)
        # This process's last sampled step is enough to watch; exact figures follow with each evaluation.
        figures = {
            "loss": loss / images,
            "accuracy": correct / images,
            "lr": self.schedule.get_last_lr()[0],
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

    def evaluate(self, network: TTFSNetwork, *, test: bool) -> Evaluation:
        """Score a network on the test or the validation images.

        Raises:
            EvaluationStopped: a signal asked to stop.
        """
        accelerator = self.accelerator
        batches = EvaluationBatches(
            self.data.test if test else self.data.train,
            None if test else self.data.validation_indices,
            self.config.evaluation_batch_size,
            accelerator.process_index,
            accelerator.num_processes,
        )
        return evaluate(
            network,
            batches,
            accelerator,
            num_workers=self.config.num_workers,
            stop=lambda: self.stop.received is not None,
        )

    def _validate(self) -> Evaluation | None:
        if len(self.data.validation_indices) == 0:
            return None
        return self.evaluate(self.scored_network, test=False)

    def _finish_epoch(self, evaluation: Evaluation | None) -> None:
        position, totals = self.position, self.position.totals
        line: dict[str, Any] = {
            "epoch": position.epoch + 1,
            "step": position.step,
            "lr": self.schedule.get_last_lr()[0],
            "train_loss": totals.loss / totals.images,
            "train_accuracy": totals.correct / totals.images,
        }
        if evaluation is not None:
            line |= {
                "val_loss": evaluation.loss,
                "val_accuracy": evaluation.accuracy,
                "val_first_spike_accuracy": evaluation.first_spike_accuracy,
                "sparsity": evaluation.sparsity,
                "sparsity_with_outputs": evaluation.sparsity_with_outputs,
                "layer_sparsity": {layer.name: layer.sparsity for layer in evaluation.layers},
            }
        line |= {"seconds": totals.seconds, "images_per_second": totals.images / totals.seconds}
        best = evaluation is None or position.is_best(evaluation.accuracy, evaluation.loss)
        if best:
            position.best_epoch = position.epoch + 1
        if best and evaluation is not None:
            position.best_accuracy, position.best_loss = evaluation.accuracy, evaluation.loss
        position.metrics.append(line)
        position.epoch += 1
        position.step_in_epoch, position.totals = 0, EpochTotals()
        self._sums.zero_()
        # Best weights before the checkpoint that names their epoch: a kill in between repeats the epoch, bit by bit.
        if best and self.accelerator.is_main_process:
            self.folder.write_best(self.scored_network.state_dict(), self._description())
        self.save()
        if self.accelerator.is_main_process:
            self.folder.write_metrics(position.metrics)
        scalars = {f"epoch/{key}": value for key, value in line.items() if isinstance(value, int | float)}
        self.accelerator.log(scalars, step=position.step)
        self.display.epoch(line, self.config.epochs, best)

    def _description(self) -> ModelDescription:
        config = self.config
        return ModelDescription.of(
            self.scored_network.config,
            class_names=self.data.train.class_names,
            fit="crop" if config.random_resized_crop else "stretch",
            # Of a local folder nobody knows what it holds; the recipe's data set is not it.
            dataset=None if config.data_dir else config.dataset,
            base_model=None if self.start is None else self.start.base_model,
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
        """Write a checkpoint of where the run stands; between two steps, and all processes together."""
        self._gather_totals()
        if self.accelerator.is_main_process:
            optimizer_tensors, optimizer_state = pack_optimizer(self.bare_optimizer)
            tensors: dict[str, dict[str, Tensor]] = {"model": self.network.state_dict(), "optimizer": optimizer_tensors}
            if self.average is not None:
                tensors["average"] = self.average.state_dict()
            state = {
                "position": self.position.to_dict(),
                "optimizer": optimizer_state,
                "schedule": self.schedule.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
                "changes": [asdict(change) for change in self.changes],
                **identity(self.config, self.accelerator, self.data),
            }
            save_checkpoint(
                self.folder.checkpoints,
                self.position.step,
                tensors=tensors,
                state=state,
                keep_last=self.config.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()
        self.last_checkpoint = str(self.folder.checkpoints / checkpoint_name(self.position.step))

    def resume(self) -> bool:
        """Go back to the newest whole checkpoint; False if there is none yet.

        Raises:
            CheckpointError: all checkpoints are damaged.
            ConfigError: this would be another run; names each difference.
            RunFolderError: the best weights so far are damaged.
        """
        path = latest_checkpoint(self.folder.checkpoints)
        if path is None:
            return False
        checkpoint = load_checkpoint(path)
        state = checkpoint.state
        now = identity(self.config, self.accelerator, self.data)
        changes = compare(path, state, now, checkpoint.step)
        self.network.load_state_dict(checkpoint.tensors["model"])
        unpack_optimizer(self.bare_optimizer, checkpoint.tensors["optimizer"], state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(checkpoint.tensors["average"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.schedule.load_state_dict(state["schedule"])
        self.position = Position.from_dict(state["position"])
        totals = self.position.totals
        if self.accelerator.is_main_process:
            sums = [totals.loss, totals.correct, totals.images]
            self._sums += torch.tensor(sums, dtype=torch.float64, device=self._sums.device)
        self.last_checkpoint = str(path)
        if self.position.best_epoch:
            self.folder.check_best()
        self.changes = [Change(**change) for change in state.get("changes", [])] + changes
        if self.accelerator.is_main_process:
            self.folder.record(self.config)
            self.folder.write_metrics(self.position.metrics)
        return True


def _mix(*numbers: int) -> int:
    """One seed from several numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63)
    return seed
