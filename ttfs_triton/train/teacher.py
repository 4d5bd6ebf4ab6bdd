"""Knowledge distillation: a run learns the class probabilities of a trained network besides the labels."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ttfs_triton.model.files import described
from ttfs_triton.model.hub import HubError
from ttfs_triton.model.locate import find_model
from ttfs_triton.model.model import TTFSModel
from ttfs_triton.model.own_network import OwnNetwork
from ttfs_triton.train.build import RunData
from ttfs_triton.train.config import ConfigError, TrainConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teacher:
    """A trained network; the network of a run learns its class probabilities.

    Attributes:
        network: in evaluation mode, on the device that trains; its weights do not change.
        weight: w, the share of the loss that compares the two networks.
        accelerator: sets the precision that the teacher computes in.
        sha256: SHA-256 of the file of the teacher's weights, hexadecimal.
    Source: Hinton et al., "Distilling the knowledge in a neural network", 2015, with temperature 1.
    """

    network: nn.Module
    weight: float
    accelerator: Accelerator
    sha256: str

    def loss(self, cross_entropy: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """(1 − w)·cross entropy + w·KL(teacher's probabilities ‖ network's), a scalar, float32.

        Args:
            cross_entropy: scalar, between the labels and the logits.
            logits: [b, classes], outputs of the network in training.
            images: [b, channels, height, width], float32, inputs of the network in training.
        """
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
        own = isinstance(described(files.config, files.weights).network, OwnNetwork)
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
