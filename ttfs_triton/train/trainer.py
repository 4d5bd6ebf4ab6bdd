"""Training from Python: any network of our layers, data in memory or loaded, and callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ttfs_triton.data.images import ImageData, images_of_tensors
from ttfs_triton.nn.trace import unwrapped
from ttfs_triton.train.build import RunData, check_network, split_data
from ttfs_triton.train.config import ConfigError, TrainConfig, make_config
from ttfs_triton.train.loop import Callback
from ttfs_triton.train.run import train

Split = ImageData | tuple[Tensor, Tensor]
"""Images and labels: as `load_images` gives them, or as tensors, [N, channels, height, width] uint8 and [N] int64."""


class Trainer:
    """Trains a network as a recipe does: checkpoints, validation, best weights, a run's folder, several processes.

    Args:
        network: any module that `network_graph` takes. At the end it holds the best weights, on the device that
            trained it.
        data: training and test images; see `Split`. Validation images are set aside as `config` says.
        config: of the run; the keys that describe a network stay at their defaults. Default: those of `TrainConfig`.
        callbacks: see `Callback`.
        name: of the default output folder and of the trackers' project.
    Raises:
        ConfigError: the network is none of our layers, or not for these images; or the configuration describes one.
        ValueError: images or labels that cannot be used.
    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from ttfs_triton.nn import DFTLinear, LatencyEncoder, PotentialReadout
        >>> network = nn.Sequential(LatencyEncoder(), nn.Flatten(), DFTLinear(64, 8), PotentialReadout(8, 2))
        >>> labels = torch.arange(64) % 2
        >>> images = torch.randint(0, 100, (64, 1, 8, 8), dtype=torch.uint8) + 100 * labels.byte().view(-1, 1, 1, 1)
        >>> with TemporaryDirectory() as folder:
        ...     config = TrainConfig(epochs=2, batch_size=16, cpu=True, output_dir=f"{folder}/run")
        ...     summary = Trainer(network, ((images, labels), (images, labels)), config).train()
        images: 0.0 MiB in main memory...
        >>> summary["epochs"], 0 <= summary["test_accuracy"] <= 1
        (2, True)
    """

    def __init__(
        self,
        network: nn.Module,
        data: RunData | tuple[Split, Split],
        config: TrainConfig | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        name: str = "run",
    ) -> None:
        config = make_config({}, "Trainer") if config is None else config
        if given := config.network_keys():
            raise ConfigError(
                f"Trainer: config must leave the network's keys at their defaults; got {', '.join(given)}."
            )
        self.network, self.callbacks, self.name = unwrapped(network), tuple(callbacks), name
        self.data = data if isinstance(data, RunData) else run_data(*data, config)
        known = {"network": config.network or type(self.network).__qualname__, "dataset": self.data.train.dataset}
        self.config = config.model_copy(update=known)
        check_network(self.network, self.data)

    def train(self) -> dict[str, Any]:
        """Train to the end; see `ttfs_triton.train.train` for what it raises.

        Returns:
            The content of `summary.json`.
        """
        return train(self.config, self.name, network=self.network, data=self.data, callbacks=self.callbacks)


def run_data(train_split: Split, test_split: Split, config: TrainConfig) -> RunData:
    """Both splits as a run takes them, validation images set aside.

    Args:
        train_split, test_split: images and labels.
        config: of the run: `validation_fraction` and `seed`.
    Raises:
        ValueError: tensors of another type or shape, or test images of another shape or other classes.
    """
    training = train_split if isinstance(train_split, ImageData) else images_of_tensors(*train_split, split="train")
    test = test_split
    if not isinstance(test, ImageData):
        test = images_of_tensors(*test, split="test", class_names=training.class_names)
    if test.shape[1:] != training.shape[1:] or test.class_names != training.class_names:
        raise ValueError(
            f"run_data: test images must be like the training images, {training.shape[1:]} in {training.class_names}; "
            f"got {test.shape[1:]} in {test.class_names}."
        )
    return split_data(training, test, config)
