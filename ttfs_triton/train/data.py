"""Images of a run, from its configuration to batches.

A batch follows from its position: it is the same in one process, in several, and in a resumed run. The order of the
images depends on seed and epoch only, an image's augmentation on seed, epoch and the image's index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from ttfs_triton.data.augment import Augmentation
from ttfs_triton.data.images import (
    ImageData,
    draw_indices,
    images_of_tensors,
    load_images,
    tensors_of_dataset,
    train_validation_split,
)
from ttfs_triton.evaluate.batches import Batch, Batches, Gathered, load_batches
from ttfs_triton.train.config import ConfigError, TrainConfig, read_yaml

STATISTICS_IMAGES = 10_000  # for channel statistics with four digits
# Pixels augmented in one call: 512 images of CIFAR-10. With fewer, PyTorch's overhead per call takes much time.
AUGMENTED_AHEAD = 512 * 32 * 32

Split = ImageData | tuple[Tensor, Tensor] | Dataset
"""Images and labels: an `ImageData`; two tensors, [N, channels, height, width] uint8 and [N] int64; or a map-style data
set of PyTorch with items (image, label), which are read once; images are uint8 tensors or Pillow's."""
LOADING = (
    *("dataset", "data_dir", "image_column", "label_column", "image_size", "random_resized_crop", "streaming"),
    *("max_train_samples", "max_test_samples", "event_windows"),
)
"""Keys that say how images are loaded."""


@dataclass(frozen=True)
class RunData:
    """The images of a run.

    Attributes:
        train, test: the training and test images as loaded.
        train_indices, validation_indices: [n] int64, indices into `train`; the second is empty without validation.
    """

    train: ImageData
    test: ImageData
    train_indices: Tensor
    validation_indices: Tensor

    def epoch(self, number: int, config: TrainConfig, accelerator: Accelerator) -> EpochBatches:
        """Micro-batches of an epoch for this process."""
        return EpochBatches(self, number, config, accelerator.process_index, accelerator.num_processes)


def load_data(config: TrainConfig, accelerator: Accelerator) -> RunData:
    """Load both splits and set validation images aside. The main process loads first, so that it alone downloads."""

    def load(split: str, samples: int | None, like: ImageData | None) -> ImageData:
        return load_images(
            config.dataset,
            config.data_dir,
            split=split,
            like=like,
            image_column=config.image_column,
            label_column=config.label_column,
            image_size=config.image_size,
            cropped=config.random_resized_crop,
            max_samples=samples,
            max_bad_images=config.max_bad_images,
            streaming=config.streaming,
            events=config.events,
            progress=accelerator.is_main_process,
        )

    with accelerator.main_process_first():
        train = load("train", config.max_train_samples, None)
        test = load("test", config.max_test_samples, train)
    return split_data(train, test, config)


def split_data(train: ImageData, test: ImageData, config: TrainConfig) -> RunData:
    """The data of a run: both splits, with the validation images that `config` asks for held out of `train`."""
    return RunData(train, test, *train_validation_split(train, config.validation_fraction, config.seed))


def run_data(train_split: Split, test_split: Split, config: TrainConfig) -> RunData:
    """The data of a run from both splits, with validation images held out as `config` says.

    Raises:
        ValueError: tensors have another dtype or shape, or test images have another shape or other classes.
        ConfigError: `config` has keys that load images.
    """
    check_loaded(config)
    training = _read(train_split, "train")
    test = _read(test_split, "test", training.class_names)
    if test.shape[1:] != training.shape[1:] or test.class_names != training.class_names:
        raise ValueError(
            f"run_data: test images must be like the training images, {training.shape[1:]} in {training.class_names}; "
            f"got {test.shape[1:]} in {test.class_names}."
        )
    return split_data(training, test, config)


def check_loaded(config: TrainConfig) -> None:
    """ConfigError if the configuration has keys that load images, which are loaded already."""
    if given := [key for key in LOADING if getattr(config, key) != TrainConfig.model_fields[key].default]:
        raise ConfigError(
            "run_data: config must leave the keys that load images at their defaults, since these are loaded already; "
            f"got {', '.join(given)}. Leave them out, and load other images instead."
        )


def trained_on_held_out(config: TrainConfig) -> str:
    """The keys by which the run of `config.weights` held out other images of the same data; "" if none, or no run."""
    path = Path(str(config.weights))
    runs = [run for run in (path, *path.parents[:2]) if (run / "best").is_dir() and (run / "config.yaml").is_file()]
    before = read_yaml(runs[0] / "config.yaml") if runs else {}
    other = [key for key, value in config if str(before.get(key)) != str(value)]
    if not runs or {"dataset", "data_dir"} & {*other}:
        return ""
    keys = ("seed", "validation_fraction", "max_train_samples")
    return ", ".join(f"{key} {before.get(key)}" for key in keys if key in other)


def _read(split: Split, name: str, class_names: Sequence[str] | None = None) -> ImageData:
    if isinstance(split, ImageData):
        return split
    tensors = split if isinstance(split, tuple) else tensors_of_dataset(split)
    names = getattr(split, "classes", None) if class_names is None else class_names
    return images_of_tensors(*tensors, split=name, class_names=names)


def channel_statistics(data: RunData) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, pixels in [0, 1], over training images drawn at random."""
    _, channels, height, width = data.train.shape
    sums, count = torch.zeros(2, channels, dtype=torch.float64), 0
    for some in draw_indices(data.train_indices, STATISTICS_IMAGES).sort().values.split(100):
        pixels = data.train.images_at(some).double() / 255
        sums += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
        count += len(some) * height * width
    mean = sums[0] / count
    std = ((sums[1] - count * mean.square()).clamp_min(0) / max(1, count - 1)).sqrt().clamp_min(1e-3)
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())


class EpochBatches(Batches):
    """Augmented micro-batches of one epoch of training images, for process number `rank` of `processes`.

    Item i is micro-batch `i % accumulation` of optimiser step `i // accumulation`. An incomplete last step is
    left out. An optimiser step has `batch_size` images, over all processes and micro-batches.
    """

    def __init__(self, data: RunData, epoch: int, config: TrainConfig, rank: int = 0, processes: int = 1) -> None:
        size, indices, self.accumulation = config.batch_size, data.train_indices, config.gradient_accumulation
        if size % (processes * self.accumulation):
            raise ValueError(
                f"EpochBatches: batch_size must be a multiple of processes times accumulation steps; got {size} "
                f"for {processes} x {self.accumulation}. Use a multiple of {processes * self.accumulation}."
            )
        if len(indices) < size:
            raise ValueError(
                f"EpochBatches: batch_size must be at most the number of training images; got {size} for "
                f"{len(indices)}. Lower --batch-size, or use more images."
            )
        self.data, self.seed, self.epoch = data.train.in_epoch(config.seed, epoch), config.seed, epoch
        self.micro_batch_size = size // (processes * self.accumulation)
        self.augmentation = Augmentation(**config.model_dump(include=set(Augmentation.model_fields)))
        self.augmentation.check_shape(self.data.shape[1:])
        digest = hashlib.sha256(f"order/{self.seed}/{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        order = torch.randperm(len(indices), generator=generator)
        # A micro-batch of all processes is split among them; this process keeps its part.
        order = order[: len(order) // size * size].view(-1, processes, self.micro_batch_size)[:, rank]
        self.order = indices[order.flatten()].to(self.data.device, non_blocking=True)

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return len(self) // self.accumulation

    def __len__(self) -> int:
        return len(self.order) // self.micro_batch_size

    def gather(self, index: int, count: int = 1) -> Gathered:
        """Indices, images (uint8) and labels of `count` micro-batches from `index` on, as one batch."""
        indices = self.order[index * self.micro_batch_size : (index + count) * self.micro_batch_size]
        return indices, self.data.images_at(indices), self.data.labels[indices]

    def finish(self, gathered: Gathered) -> Batch:
        """The batch, augmented on the device of the gathered tensors."""
        indices, images, labels = gathered
        return self.augmentation(images, indices, seed=self.seed, epoch=self.epoch), labels


def train_loader(
    batches: EpochBatches, device: torch.device | None = None, *, start_step: int = 0, num_workers: int = 0
) -> Generator[Batch]:
    """Micro-batches of an epoch from the optimiser step `start_step` on; see `load_batches`."""
    first, count = start_step * batches.accumulation, 1
    at_hand = batches.data.in_memory and (device is None or device.type == batches.data.device.type)
    if at_hand and batches.augmentation.changes_images:
        height, width = batches.data.shape[2:]
        count = AUGMENTED_AHEAD // (batches.micro_batch_size * height * width)
    if count > 1:
        return _augment_ahead(batches, first, count)
    return load_batches(batches, device, first=first, num_workers=num_workers)


def _augment_ahead(batches: EpochBatches, first: int, count: int) -> Generator[Batch]:
    """Micro-batches, augmented `count` at a time, since the augmentation of an image does not depend on its batch."""
    for index in range(first, len(batches), count):
        images, labels = batches.finish(batches.gather(index, count))
        yield from zip(*(tensor.split(batches.micro_batch_size) for tensor in (images, labels)), strict=True)
