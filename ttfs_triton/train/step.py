"""An optimiser step, plain or replayed: forward, backward, a teacher, clipping, update, averages; a guard."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.profiler import record_function

from ttfs_triton.evaluate import sum_over_processes
from ttfs_triton.evaluate.batches import Batch
from ttfs_triton.model.files import described, find_model
from ttfs_triton.model.hub import HubError
from ttfs_triton.model.model import TTFSModel
from ttfs_triton.model.own_network import OwnNetwork
from ttfs_triton.nn import record_statistics, reset_statistics
from ttfs_triton.train.config import ConfigError, TrainConfig
from ttfs_triton.train.data import RunData
from ttfs_triton.train.device import CudaGraphs
from ttfs_triton.train.lagrange import LagrangeMultiplier

logger = logging.getLogger(__name__)

# Steps before the capture. DistributedDataParallel times its first ten, and rearranges its buckets in the first.
WARM_UP = 3
WARM_UP_DISTRIBUTED = 11
LOOKAHEAD_DECAY = 0.95  # in `look_ahead`: decay of earlier weights in one step, at the end of training


@dataclass
class TrainStep:
    """An optimiser step: forward, backward, clipping, update and moving average of weights.

    `network`, `model`, `optimizer` (prepared by the accelerator) and `sums` are those of `Learner`. With a multiplier,
    the model also returns the network's cost.
    """

    config: TrainConfig
    accelerator: Accelerator
    network: nn.Module
    model: nn.Module
    optimizer: AcceleratedOptimizer
    average: AveragedModel | None
    multiplier: LagrangeMultiplier | None = None
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        self.bare_optimizer: Optimizer = self.optimizer.optimizer
        self.guard = FiniteGuard(self.bare_optimizer, self.accelerator.device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)

    def __call__(self, micro_batches: Sequence[Batch], *, sampled: bool = False, first: bool = False) -> None:
        """Run the step on images and labels, [b], int64, on the device.

        `sampled`: count the spikes of each layer. `first`: the moving average starts with this step.
        """
        self.optimizer.zero_grad()
        if sampled:
            reset_statistics(self.network)
        losses = []
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                losses.append(self._gradients(batch, len(micro_batches), sampled))
        if self.multiplier is not None:
            with record_function("multipliers"):
                self.multiplier.update()
        with record_function("clipping"):
            self._watch(sum(losses[1:], losses[0]))
        with record_function("optimiser"):
            self.optimizer.step()
        if self.average is not None:
            with record_function("moving average"):
                update_average(self.average, self.network, self.config.ema_decay, first=first)

    def _gradients(self, batch: Batch, micro_batches: int, sampled: bool) -> Tensor:
        """Add the gradients of a micro-batch and return its loss."""
        images, labels = batch
        with record_statistics(self.network) if sampled else nullcontext():
            output = self.model(images)
        logits: Tensor = output if self.multiplier is None else output[0]
        with record_function("loss"):
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)
            if self.teacher is not None:
                loss = self.teacher.loss(loss, logits, images)
            total = loss if self.multiplier is None else loss + self.multiplier.penalty(output[1], micro_batches)
        self.accelerator.backward(total / micro_batches if micro_batches > 1 else total)
        correct = (logits.detach().argmax(1) == labels).sum()
        count = len(labels)
        self.sums += torch.stack([loss.detach() * count, correct, torch.full_like(correct, count)])
        return loss.detach()

    def _watch(self, loss: Tensor) -> None:
        """Clip the gradient as configured; cancel the update if gradient or loss is not finite."""
        config, accelerator = self.config, self.accelerator
        scaled = accelerator.scaler is not None  # fp16: infinite gradients are part of finding the scale
        if config.gradient_clip is not None:
            norm = accelerator.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
            assert norm is not None  # None is for DeepSpeed, which is refused
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        # The gradient is the mean over processes, so all see the same norm; a loss alone would differ.
        # 0 · inf and 0 · nan are nan.
        failed = (0 * (loss if scaled else loss + norm)).nan_to_num_(nan=1.0)
        if scaled and accelerator.num_processes > 1:
            failed = sum_over_processes(accelerator, failed).clamp_(max=1)
        self.guard.watch(loss, norm, failed)


class GraphError(RuntimeError):
    """Work could not be captured in a CUDA graph."""


class GraphedStep:
    """A step that is captured in a CUDA graph after its warm-up, and replayed from then on: one launch for hundreds.

    All steps must have micro-batches of the same shapes. Steps that count spikes or begin an average run without it.
    A captured step cannot read numbers on the host: learning rates are tensors, and the caller counts the steps. A
    capture executes nothing, and the steps before it are steps of the run: weights are the same with and without it.

    Args:
        required: raise if the capture fails; else the run continues without a graph, and says so.
    """

    def __init__(self, step: TrainStep, graphs: CudaGraphs, *, required: bool, say: Callable[[str], None]) -> None:
        self.step, self.graphs, self.required, self.say = step, graphs, required, say
        self.replay: Callable[[], None] | None = None
        self._inputs: list[Batch] = []
        distributed = step.accelerator.num_processes > 1
        if distributed:  # its logging would wait for the device every hundred steps, also during a capture
            step.model._set_ddp_runtime_logging_sample_rate(2**31 - 1)  # type: ignore[operator]
        self._warm_up = self._steps_before = WARM_UP_DISTRIBUTED if distributed else WARM_UP
        self._failed = False
        # CUDA's fused kernels read a rate as float32, PyTorch's own on the CPU as float64.
        device = step.accelerator.device
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        for group in step.bare_optimizer.param_groups:
            group["lr"] = torch.zeros((), dtype=dtype, device=device)

    def __call__(self, micro_batches: Sequence[Batch], *, sampled: bool = False, first: bool = False) -> None:
        """Run the step, as `TrainStep` does."""
        if sampled or first or self._failed:
            self.step(micro_batches, sampled=sampled, first=first)
        elif self._warm_up > 0:
            self._warm_up -= 1
            with self.graphs.aside():
                self.step(micro_batches)
        else:
            if self.replay is None:
                self._capture(micro_batches)
            if self.replay is None:
                self.step(micro_batches)
                return
            for (images, labels), (own_images, own_labels) in zip(micro_batches, self._inputs, strict=True):
                own_images.copy_(images, non_blocking=True)
                own_labels.copy_(labels, non_blocking=True)
            self.replay()

    def forget(self) -> None:
        """Warm up and capture anew: the step launches other kernels from now on, which a capture cannot load."""
        self.replay, self._inputs, self._warm_up = None, [], self._steps_before

    def _capture(self, micro_batches: Sequence[Batch]) -> None:
        # `clone` keeps channels last: other kernels are captured for another memory format.
        self._inputs = [(images.clone(), labels.clone()) for images, labels in micro_batches]
        # The graph's gradients are allocated in the graph's own memory.
        self.step.optimizer.zero_grad(set_to_none=True)
        try:
            with _capturable(self.step.bare_optimizer):
                self.replay = self.graphs.capture(lambda: self.step(self._inputs))
        except RuntimeError as error:
            # PyTorch raises the error of ending the capture on top of the one that made it fail.
            reason = str(error.__context__ or error).strip().splitlines()[0].rstrip(".")
            accelerator = self.step.accelerator
            if self.required or accelerator.num_processes > 1:
                raise GraphError(
                    f"GraphedStep: a step must be capturable in a CUDA graph; got {reason}. Use --cuda-graph off."
                ) from error
            self._failed, self._inputs = True, []
            if accelerator.scaler is not None:
                # The scaler has noted a step that was never made; setting its scale makes it start anew.
                accelerator.scaler.update(accelerator.scaler.get_scale())
            self.say(f"no CUDA graph: {reason}")


@contextmanager
def _capturable(optimizer: Optimizer) -> Iterator[None]:
    """Within the `with` block, tell Adam that it is being captured; elsewhere Adam would warn of this setting."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


class FiniteGuard:
    """Cancels all updates of a fused optimizer from the first step whose loss or gradient is not finite.

    Weights and moments stay as they were before that step, until the host reads `cancelled`: its kernels change nothing
    where `optimizer.found_inf` is 1, which is how gradient scaling skips a step without asking the device.

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
        """Note loss and gradient norm of a step before its update; failed = 1 cancels it and all that follow."""
        now = torch.stack([failed, loss, norm])
        torch.where(self._failed > 0, self._state, now, out=self._state)
        self.cancelled.add_(self._failed)

    def _join(self, optimizer: Optimizer, *_: object) -> None:
        """Combine our flag with the flag of a gradient scaler, which has replaced it."""
        flag = getattr(optimizer, "found_inf", self._failed)
        if flag is not self._failed:
            optimizer.found_inf = torch.maximum(flag, self._failed)  # type: ignore[attr-defined]


@torch.no_grad()
def look_ahead(average: nn.Module, network: nn.Module, steps: int, progress: float) -> None:
    """Average weights with the average of earlier steps, and let the network continue from there.

    average ← d·average + (1 − d)·network with d = 0.95^steps · progress³, then network ← average; buffers too. `steps`
    are those since the last call, `progress` is the share of the training that is done.

    Source: Zhang et al., "Lookahead optimizer", 2019; d as in Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024, 3.4.
    """
    decay = LOOKAHEAD_DECAY**steps * progress**3
    own = [tensor for tensor in (*average.parameters(), *average.buffers()) if tensor.is_floating_point()]
    other = [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]
    for slow, fast in zip(own, other, strict=True):
        slow.lerp_(fast, 1 - decay)
        fast.copy_(slow)


@torch.no_grad()
def update_average(average: AveragedModel, network: nn.Module, decay: float, *, first: bool = False) -> None:
    """Exponential moving average: average ← d·average + (1 − d)·network, d = min(decay, (1 + t) / (10 + t)).

    t is the average's `n_averaged`, a tensor that the caller counts up. Integer buffers are copied, and with
    `first` all.

    Source: tf.train.ExponentialMovingAverage, `num_updates`.
    """
    share = (9 / (10 + average.n_averaged)).clamp_min(1 - decay)
    ours, theirs = ((*module.parameters(), *module.buffers()) for module in (average.module, network))
    for own, other in zip(ours, theirs, strict=True):
        if first or not own.is_floating_point():
            own.copy_(other)
        else:
            own.lerp_(other, share.to(own.dtype))


@dataclass(frozen=True)
class Teacher:
    """Knowledge distillation: a trained network whose class probabilities a run learns besides the labels.

    `weight` is w, the share of the loss that compares the two networks; `sha256` is that of the file of its weights.

    Source: Hinton et al., "Distilling the knowledge in a neural network", 2015, with temperature 1.
    """

    network: nn.Module
    weight: float
    accelerator: Accelerator
    sha256: str

    def loss(self, cross_entropy: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """(1 − w)·cross entropy + w·KL(teacher's probabilities ‖ network's), a scalar; `logits`: [b, classes]."""
        with torch.no_grad(), self.accelerator.autocast():
            wanted = self.network(images).float().log_softmax(1)
        divergence = F.kl_div(logits.float().log_softmax(1), wanted, reduction="batchmean", log_target=True)
        return (1 - self.weight) * cross_entropy + self.weight * divergence


def load_teacher(config: TrainConfig, data: RunData, accelerator: Accelerator) -> Teacher | None:
    """The teacher of a run; None without one. A teacher of a user-defined network is built by `config.network`."""
    if config.teacher is None:
        return None
    try:
        files = find_model(config.teacher)
        own = isinstance(described(files).network, OwnNetwork)
        model = TTFSModel.from_files(files, config.network if own else None)
    except (ValueError, HubError) as error:
        raise ConfigError(f"teacher: {error}") from error
    names, classes = list(model.class_names), data.train.class_names
    unnamed = names == [str(number) for number in range(len(classes))]
    if model.image_shape != data.train.shape[1:] or (names != classes and not unnamed):
        raise ConfigError(
            f"teacher must be trained on images like these, {data.train.shape[1:]} (channels, height, width) in the "
            f"classes {', '.join(classes):.200}; got {config.teacher}, trained on {model.image_shape} in the classes "
            f"{', '.join(names):.200}. Choose another teacher, or the data that it was trained on."
        )
    origins = {model.description.dataset, data.train.dataset} - {None}
    if unnamed and (names != classes or len(origins) > 1):
        logger.warning(
            "teacher: the classes of %s, trained on %s, have only numbers; taken for %.200s, in order.",
            *(config.teacher, model.description.dataset or "data without a name", ", ".join(classes)),
        )
    network = model.network.float().to(accelerator.device).requires_grad_(False)
    return Teacher(network.eval(), config.teacher_weight, accelerator, files.sha256)
