"""A network in training: its steps, all that they change, and a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial, reduce
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ttfs_kernels.checks import backend_for
from ttfs_triton.data.images import ImageData, draw_indices
from ttfs_triton.energy import Counts, counting
from ttfs_triton.evaluate import Evaluation, EvaluationBatches, evaluate, sum_over_processes
from ttfs_triton.evaluate.batches import Batch, load_batches
from ttfs_triton.model.files import not_finite
from ttfs_triton.nn import NetworkGraph, collect_statistics, network_graph, record_statistics, reset_statistics
from ttfs_triton.nn.weighted import WeightedLayer
from ttfs_triton.train.build import Teacher
from ttfs_triton.train.checkpoint import RunState
from ttfs_triton.train.config import TrainConfig
from ttfs_triton.train.data import RunData
from ttfs_triton.train.device import GraphedStep, choose_graphs, share_statistics
from ttfs_triton.train.optimisation import PersistenceSchedule, build_optimizer, look_ahead, rate_factor, update_average
from ttfs_triton.train.target import TargetTraining

STATISTICS_IMAGES = 5_000
"""Number of training images for the statistics of batch norm in evaluation."""


class NonFiniteLossError(RuntimeError):
    """Loss, gradient or averaged weights became infinite or not a number; nothing was saved after that."""


class FiniteGuard:
    """Cancels all updates of a fused optimizer from the first step on whose loss or gradient is not finite.

    Weights and moments stay as they were before that step, until the host reads `cancelled`: the optimizer's kernels
    change nothing where `optimizer.found_inf` is 1. Gradient scaling skips steps so, without asking the device.

    Attributes:
        cancelled: number of cancelled steps, the first failing one included; float64 scalar.
        loss, norm: loss and gradient norm of the last step, or of the first failing step; float32 scalars.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self._state = torch.zeros(3, device=device)
        self._failed, self.loss, self.norm = self._state.unbind()
        self.cancelled = torch.zeros((), dtype=torch.float64, device=device)
        optimizer.found_inf = self._failed  # type: ignore[attr-defined]
        optimizer.register_step_pre_hook(self._join)

    def watch(self, loss: Tensor, norm: Tensor, failed: Tensor) -> None:
        """Note loss and gradient norm of a step before its update; failed = 1 cancels this and all later updates."""
        now = torch.stack([failed, loss, norm])
        torch.where(self._failed > 0, self._state, now, out=self._state)
        self.cancelled.add_(self._failed)

    def _join(self, optimizer: Optimizer, *_: object) -> None:
        """Combine our flag with that of a gradient scaler, which has replaced ours."""
        flag = getattr(optimizer, "found_inf", self._failed)
        if flag is not self._failed:
            optimizer.found_inf = torch.maximum(flag, self._failed)  # type: ignore[attr-defined]


class Learner:
    """A network in training, which is moved to the device, with its optimiser, schedules, average and target.

    `stopping` says whether this process was asked to stop, which ends scoring.

    Attributes:
        network, model: the bare network; the distributed, compiled one that is called in training.
        average: moving average of the network's weights and buffers, if the run has one.
        optimizer: the bare optimiser, without accelerate's wrapper, which handles loss scaling.
        loss: loss of a batch, a scalar, from logits [b, classes], float32, and labels [b], int64; cross entropy with
            `label_smoothing`, unless a callback replaces it at the start. It must not wait for the device.
        sums: [3], float64, on the device: loss, right answers and images of the epoch so far, in this process.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        network: nn.Module,
        graph: NetworkGraph,
        data: RunData,
        steps: int,
        teacher: Teacher | None,
        stopping: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.accelerator, self.network, self.steps = config, accelerator, network, steps
        self.teacher, self.say, self._stopping, self._compiled = teacher, say, stopping, False
        if config.lookahead > steps:
            say(f"lookahead: weights are not averaged, since the run has only {steps} steps")
        self.target: TargetTraining | None = None
        if config.target is not None:
            self.target = TargetTraining(config, accelerator, network, graph, data, steps)
        taught_by = teacher and network_graph(teacher.network, data.train.shape[1:])
        graphs = choose_graphs(config, accelerator, graph, say, taught_by)
        # DistributedDataParallel is made on the stream of the capture, since autograd remembers a module's stream.
        with nullcontext() if graphs is None else graphs.aside():
            model = accelerator.prepare_model(network if self.target is None else self.target.model)
        self.model = cast(nn.Module, torch.compile(model) if config.compile else model)
        self.optimizer = build_optimizer(config, network, accelerator.mixed_precision)
        if self.target is not None:
            self.target.silent_channels.attach(self.optimizer)
        averages = config.ema_decay or 0 < config.lookahead <= steps
        # The average's step count is on the device: a CUDA graph would read a count on the host only once.
        self.average = AveragedModel(network, accelerator.device, use_buffers=True) if averages else None
        if config.sync_batch_norm:
            share_statistics(network)  # after the copy, since a group of processes cannot be copied
        networks = [network] if self.average is None else [network, self.average.module]
        self.persistence = PersistenceSchedule(networks, config.psp_persistence_rise, steps, accelerator.device)
        self._rate_factor = rate_factor(config, steps)
        self._prepared = accelerator.prepare_optimizer(self.optimizer)
        self._guard = FiniteGuard(self.optimizer, accelerator.device)
        self.loss: Callable[[Tensor, Tensor], Tensor]
        self.loss = partial(F.cross_entropy, label_smoothing=config.label_smoothing)
        self.sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
        self._graphed = None
        if graphs is not None:
            required = config.cuda_graph == "on"
            self._graphed = GraphedStep(self.update, graphs, accelerator, self.model, self.optimizer, required, say)

    @property
    def scored_network(self) -> nn.Module:
        """The network that is evaluated and kept: the moving average, if there is one."""
        return self.network if self.average is None else self.average.module

    def learning_rate(self, done: int) -> float:
        """Learning rate of the step after `done` steps, for parameters whose rate has no factor."""
        return self.optimizer.param_groups[0]["initial_lr"] * self._rate_factor(done)

    def step(self, micro_batches: list[Batch], done: int) -> None:
        """Make the optimiser step after `done` steps; it depends on tensors, configuration and this number alone."""
        # Dropout, too: a resumed run draws the same random numbers.
        numbers = self.config.seed, done, self.accelerator.process_index
        torch.manual_seed(reduce(lambda seed, number: (seed * 1_000_003 + number + 1) % 2**63, numbers, 0))
        changed, images = self.persistence.set(done), micro_batches[0][0]
        if (changed or not self._compiled) and backend_for("train", self.config.backend, images) == "triton":
            from ttfs_kernels.triton.compilation import compile_kernels

            compile_kernels(self.network, images, self.accelerator.autocast(), self.say)
        self._compiled = True
        if changed and self._graphed is not None:
            self._graphed.forget()
        first = done == 0
        if self.target is not None:
            first |= self.target.prepare(done, self.learning_rate(done) / self.config.lr)
        factor = self._rate_factor(done)
        for group in self.optimizer.param_groups:
            rate = group["initial_lr"] * factor
            if isinstance(group["lr"], Tensor):  # a captured step reads the rate from this tensor
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        make = self.update if self._graphed is None else self._graphed
        make(micro_batches, sampled=done % self.config.statistics_steps == 0, first=first)
        if self.average is None:
            return
        self.average.n_averaged.mul_(not first).add_(1)  # a new average warms up anew
        if self.config.lookahead and (done + 1) % self.config.lookahead == 0:
            look_ahead(self.average.module, self.network, self.config.lookahead, (done + 1) / self.steps)

    def update(self, micro_batches: Sequence[Batch], *, sampled: bool = False, first: bool = False) -> None:
        """Make a step on images and labels, [b], int64, on the device: forward, backward, clipping, update, average.

        `sampled`: count the layers' spikes. `first`: the moving average starts with this step.
        """
        self.optimizer.zero_grad()
        if sampled:
            reset_statistics(self.network)
        losses = []
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                losses.append(self._gradients(batch, len(micro_batches), sampled))
        if self.target is not None:
            self.target.multiplier.update()
        self._watch(sum(losses[1:], losses[0]))
        self._prepared.step()
        if self.average is not None and not self.config.lookahead:
            update_average(self.average, self.network, self.config.ema_decay, first=first)

    def _gradients(self, batch: Batch, micro_batches: int, sampled: bool) -> Tensor:
        """Add the gradients of a micro-batch and return its loss."""
        images, labels = batch
        with record_statistics(self.network) if sampled else nullcontext():
            output = self.model(images)
        logits: Tensor = output if self.target is None else output[0]
        loss = self.loss(logits.float(), labels)
        if self.teacher is not None:
            loss = self.teacher.loss(loss, logits, images)
        total = loss if self.target is None else loss + self.target.multiplier.penalty(output[1], micro_batches)
        self.accelerator.backward(total / micro_batches if micro_batches > 1 else total)
        correct = (logits.detach().argmax(1) == labels).sum()
        count = len(labels)
        self.sums += torch.stack([loss.detach() * count, correct, torch.full_like(correct, count)])
        return loss.detach()

    def _watch(self, loss: Tensor) -> None:
        """Clip the gradient as configured; cancel the update if gradient or loss is not finite."""
        config, accelerator = self.config, self.accelerator
        scaled = accelerator.scaler is not None  # fp16: the search for a scale may make gradients infinite
        if config.gradient_clip is not None:
            norm = accelerator.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
            assert norm is not None  # it is None only for DeepSpeed, which is refused
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        # The gradient is the mean over processes, so all see the same norm; losses differ between processes.
        # 0 · inf and 0 · nan are nan.
        failed = (0 * (loss if scaled else loss + norm)).nan_to_num_(nan=1.0)
        if scaled and accelerator.num_processes > 1:
            failed = sum_over_processes(accelerator, failed).clamp_(max=1)
        self._guard.watch(loss, norm, failed)

    def read_sums(self, done: int) -> tuple[list[float], int | None]:
        """`sums` over all processes; and the number of steps since updates were cancelled in one of them, or None."""
        sums = torch.cat([self.sums, self._guard.cancelled.view(1)])
        *sums, cancelled = sum_over_processes(self.accelerator, sums).tolist()
        scaler = self.accelerator.scaler  # halves its scale, 65,536 at first, at every step that it skips
        if not cancelled and scaler is not None and scaler.get_scale() < 1:
            raise NonFiniteLossError(
                f"step {done}: gradients are not finite in fp16, even unscaled, and steps are skipped. Use "
                "--mixed-precision bf16 or no."
            )
        # The number is 0 if only other processes cancelled updates.
        return sums, max(0, int(self._guard.cancelled.item()) - 1) if cancelled else None

    def failure(self, step: str, images: Tensor) -> NonFiniteLossError:
        """The error for a cancelled step, with the layers' activity on its images."""
        reset_statistics(self.network)
        with torch.no_grad(), record_statistics(self.network), self.accelerator.autocast():
            self.network(images.to(self.accelerator.device))
        layers = "\n".join(
            f"  {layer.name}: active {layer.sparsity:.2%}, saturated {layer.saturated_share:.2%}"
            for layer in collect_statistics(self.network)
        )
        return NonFiniteLossError(
            f"{step}: loss {self._guard.loss.item()}, gradient norm {self._guard.norm.item()}; stopped before the "
            f"update.\n{layers}\nA lower --lr or --gradient-clip 1 usually helps."
        )

    def score(self, images: ImageData, indices: Tensor | None = None) -> Evaluation:
        """Score the network on images, every one once over all processes; `indices`: [n], int64. Default: all."""
        accelerator, size = self.accelerator, self.config.evaluation_batch_size
        batches = EvaluationBatches(images, indices, size, accelerator.process_index, accelerator.num_processes)
        workers = self.config.num_workers
        return evaluate(self.scored_network, batches, accelerator, num_workers=workers, stop=self._stopping)

    def validate(self, data: RunData, epoch: int) -> Evaluation | None:
        """Score the network on the validation images, if there are any, with batch statistics of training images."""
        # Batches as in training, whatever the number of processes and the batch size of scoring.
        size = min(500, self.config.batch_size // self.config.gradient_accumulation)
        refresh_statistics(self.scored_network, data.train, data.train_indices, size, self.accelerator)
        if problem := not_finite(self.scored_network.state_dict()):  # averages may fail although every loss was finite
            raise NonFiniteLossError(
                f"epoch {epoch}: the scored weights must be finite; got {problem}. They were not saved. A lower --lr "
                "usually helps."
            )
        if self.target is not None:
            return self.target.validate(partial(self.score, data.train), self.scored_network)
        return self.score(data.train, data.validation_indices) if len(data.validation_indices) else None

    def end_epoch(self, done: int, evaluation: Evaluation | None) -> tuple[dict[str, Any], float]:
        """Figures of an epoch for metrics.jsonl, except its sums; and how far cost and σ are from their goals."""
        self.sums.zero_()
        share = self.persistence.share
        figures: dict[str, Any] = {"lr": self.learning_rate(done)}
        if self.config.psp_persistence_rise is not None:
            figures["rise"] = share
        if evaluation is not None:
            figures |= {
                "val_loss": evaluation.loss,
                "val_accuracy": evaluation.accuracy,
                "val_first_spike_accuracy": evaluation.first_spike_accuracy,
                "sparsity": evaluation.sparsity,
                "layer_sparsity": {layer.name: layer.sparsity for layer in evaluation.layers},
            }
        if self.target is None:
            return figures, 1 - share
        return figures | self.target.after_epoch(), 1 - share + self.target.miss

    def score_test(self, data: RunData) -> tuple[Evaluation, Counts]:
        """Score the network on the test images once, and count its events; `network` takes the scored weights."""
        network = self.scored_network
        with counting(network, image_shape=data.test.shape[1:], histogram_bins=0) as counter:
            # bfloat16 rounds some potentials across the threshold. Test figures are those of the float32 network.
            self.accelerator.unwrap_model(network, keep_fp32_wrapper=False)
            evaluation = self.score(data.test)
        if self.average is not None:
            self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)
            self.network.load_state_dict(network.state_dict())
        return evaluation, counter.counts(self.accelerator)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors that a checkpoint keeps, group → name → tensor; they share the learner's memory."""
        moments = self.optimizer.state_dict()["state"].items()
        named = {f"{index}.{name}": tensor for index, state in moments for name, tensor in state.items()}
        groups = {"model": self.network.state_dict(), "optimizer": named}
        if self.average is not None:
            groups["average"] = self.average.state_dict()
        if self.target is not None:
            groups["dial"] = {"state": self.target.multiplier.state}
        return groups

    @torch.no_grad()
    def restore(self, state: RunState, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what a checkpoint keeps; KeyError or ValueError if it does not fit this network and configuration."""
        if broken := [group for group, named in tensors.items() if not_finite(named)]:
            raise ValueError(f"numbers must be finite, also in {', '.join(broken)}")
        for group, named in self.tensors().items():
            for name, tensor in named.items():
                saved = tensors[group][name]
                if (saved.dtype, saved.shape) != (tensor.dtype, tensor.shape):
                    raise ValueError(f"{group}: {name} must be {tensor.dtype} {tensor.shape}; got {saved.shape}")
                tensor.copy_(saved)
        if self.target is not None:
            self.target.silent_channels.layers = state.held_layers or []  # by the weights that the run began with
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)


@torch.no_grad()
def refresh_statistics(
    network: nn.Module, images: ImageData, indices: Tensor, batch_size: int, accelerator: Accelerator
) -> None:
    """Compute the statistics of all batch norms: means over whole batches of training images, without augmentation.

    Running statistics lag behind the weights at a high learning rate, and do not fit averages of weights. The images
    are drawn at random from those at `indices`, [n], int64, the same ones in every process and epoch.
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
