"""An optimiser step: all that happens on the device, with no reading of the host's clock, counters or random state.

What the host keeps, such as the learning rate's course and the number of averaged models, is the caller's: a step
that was captured in a graph is replayed without the lines below.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.profiler import record_function

from ttfs_triton.nn import record_statistics, reset_statistics
from ttfs_triton.scoring import sum_over_processes
from ttfs_triton.scoring.batches import Batch
from ttfs_triton.train.config import TrainConfig
from ttfs_triton.train.dial import Dial
from ttfs_triton.train.update import FiniteGuard, update_average


class TrainStep:
    """Forward, backward, clipping, update and moving average of micro-batches.

    Args:
        config: of the run.
        accelerator: precision and processes.
        network: the bare network.
        model: what is called: the network, distributed and compiled as asked for.
        optimizer: prepared by the accelerator.
        average: the moving average, if there is one.
        dial: holds what the network costs to a goal, if there is one; the model then also says what it costs.
    Attributes:
        sums: [3], float64, on the device: loss, right answers and images of this process since they were last zeroed.
        guard: cancels updates that are not finite.
        rates: learning rate of each parameter group as a scalar on the device; None: as the groups hold it.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        network: nn.Module,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        average: AveragedModel | None,
        dial: Dial | None = None,
    ) -> None:
        self.config, self.accelerator, self.network, self.model = config, accelerator, network, model
        self.optimizer, self.average, self.dial = optimizer, average, dial
        self.bare_optimizer: Optimizer = optimizer.optimizer
        self.guard = FiniteGuard(self.bare_optimizer, accelerator.device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
        self.rates: list[Tensor] | None = None

    def __call__(self, micro_batches: Sequence[Batch], *, sampled: bool = False, first: bool = False) -> None:
        """Make a step.

        Args:
            micro_batches: images and labels on the device; labels [b], int64, or probabilities [b, classes].
            sampled: count the spikes of each layer.
            first: of the run; the moving average starts with it.
        """
        self.optimizer.zero_grad()
        if sampled:
            reset_statistics(self.network)
        losses = []
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                losses.append(self._gradients(batch, len(micro_batches), sampled))
        if self.dial is not None:
            with record_function("dial"):
                self.dial.update()
        with record_function("clipping"):
            self._watch(sum(losses[1:], losses[0]))
        with record_function("optimiser"), self._rates_on_the_device():
            self.optimizer.step()
        if self.average is not None:
            with record_function("moving average"):
                update_average(self.average, self.network, first=first)

    def _gradients(self, batch: Batch, micro_batches: int, sampled: bool) -> Tensor:
        """Add the gradients of a micro-batch; returns its loss."""
        images, labels = batch
        with record_statistics(self.network) if sampled else nullcontext():
            output = self.model(images)
        logits: Tensor = output if self.dial is None else output[0]
        with record_function("loss"):
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)
            total = loss if self.dial is None else loss + self.dial.penalty(output[1], micro_batches)
        self.accelerator.backward(total / micro_batches if micro_batches > 1 else total)
        classes = labels if labels.dim() == 1 else labels.argmax(1)
        correct = (logits.detach().argmax(1) == classes).sum()
        count = len(labels)
        self.sums += torch.stack([loss.detach() * count, correct, torch.full_like(correct, count)])
        return loss.detach()

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
        # 0 times what is not finite is nan.
        failed = (0 * (loss if scaled else loss + norm)).nan_to_num_(nan=1.0)
        if scaled and accelerator.num_processes > 1:
            failed = sum_over_processes(accelerator, failed).clamp_(max=1)
        self.guard.watch(loss, norm, failed)

    @contextmanager
    def _rates_on_the_device(self) -> Iterator[None]:
        """Let the optimizer read `rates`; schedule and checkpoints see numbers."""
        groups = self.bare_optimizer.param_groups
        before = [group["lr"] for group in groups]
        for group, rate in zip(groups, self.rates or before, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, rate in zip(groups, before, strict=True):
                group["lr"] = rate
