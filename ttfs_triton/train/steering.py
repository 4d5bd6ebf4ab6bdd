"""A run that has a target: what its loop does about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from ttfs_triton.data.images import draw_images
from ttfs_triton.hardware import Counts, counting
from ttfs_triton.nn import NetworkGraph
from ttfs_triton.scoring import Evaluation
from ttfs_triton.train.background import Background
from ttfs_triton.train.build import RunData
from ttfs_triton.train.config import TrainConfig
from ttfs_triton.train.dial import Dial
from ttfs_triton.train.metering import MeteredNetwork
from ttfs_triton.train.target import TOLERANCE, Target, make_target

# Enough to know what the first layer reads of an image, which is all that a target needs of them.
TARGET_IMAGES = 128
# Training images on which costs are measured after an epoch, where there are no validation images.
MEASURED_IMAGES = 2000


class Steering:
    """Target, metered network and dial of a run.

    Args:
        config: of the run, with a target.
        accelerator: device and processes.
        network: moved to the device.
        graph: of the network.
        data: images and splits.
        steps: optimiser steps of the run.
    Attributes:
        target: what the network may cost.
        model: the network that also says what it costs.
        dial: the multipliers.
        measured: costs of the scored network after the last epoch; None before.
    Raises:
        ValueError: the target cannot be reached.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        network: nn.Module,
        graph: NetworkGraph,
        data: RunData,
        steps: int,
    ) -> None:
        assert config.target is not None
        device = accelerator.device
        some = draw_images(data.train, TARGET_IMAGES, config.seed, data.train_indices).to(device)
        self.target: Target = make_target(config.target, network.to(device), some, config.target_steps)
        self.model = MeteredNetwork(network, graph, self.target)
        self.dial = Dial(self.target.goals, self.target.floors, accelerator, steps, config.ema_decay)
        self._background = Background(graph, some)
        self.accelerator, self._data, self._image_shape = accelerator, data, graph.image_shape
        self.measured: list[float] | None = None

    def watch(self, optimizer: Optimizer) -> None:
        """Keep costs from jumping up in updates by this optimizer, once the goals have been approached."""
        self._background.attach(optimizer)

    def prepare(self, step: int, rate: float) -> bool:
        """As `Dial.prepare`, before each step."""
        self._background.hold(step >= self.dial.approach)
        return self.dial.prepare(step, rate)

    def validate(self, score: Callable[[Tensor], Evaluation], network: nn.Module) -> Evaluation | None:
        """Measure a network's costs on the validation images and score it there; None if there are none.

        Then some training images tell the costs, without augmentation.

        Args:
            score: scores the training images of these indices, one by one, as they are.
            network: which.
        """
        own, held_out = self._data.train_indices, self._data.validation_indices
        indices = held_out if len(held_out) else own[:: max(1, len(own) // MEASURED_IMAGES)]
        with counting(network, image_shape=self._image_shape, histogram_bins=0, by_sample=False) as counter:
            evaluation = score(indices)
        self.measured = self.target.measure(counter.counts(self.accelerator))
        return evaluation if len(held_out) else None

    def after_epoch(self) -> dict[str, Any]:
        """Tell the dial what was measured; what of that belongs into metrics."""
        assert self.measured is not None
        self.dial.correct(self.measured)
        named = self.target.named
        return {"cost": named(self.measured), "multiplier": named(self.dial.multipliers())}

    def result(self, metrics: Sequence[Mapping[str, Any]], best: Mapping[str, Any], test: Counts) -> dict[str, Any]:
        """What was wanted and what was reached, for the summary.

        Args:
            metrics: a line an epoch.
            best: that of the best one.
            test: counts of its weights on the test images.
        """
        stalled = self.target.stalled([list(line["cost"].values()) for line in metrics])
        validation = best["cost"] if "val_accuracy" in best else None
        return self.target.to_dict(validation, self.target.measure(test), stalled)

    @property
    def miss(self) -> float:
        """By how much the goals are missed after the last epoch, beyond half the tolerance: test images differ."""
        assert self.measured is not None
        return max(0.0, self.target.miss(self.measured) - TOLERANCE / 2)
