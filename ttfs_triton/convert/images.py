"""Training images to calibrate on, as the options of a command name them."""

from typing import Any

import torch
from torch import Tensor

from ttfs_triton.commands.convert import CalibrationImages
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.data.images import ImageData, draw_images, load_images
from ttfs_triton.model.description import ModelDescription


def load_training_images(
    options: CalibrationImages, function: str, description: ModelDescription, count: int
) -> ImageData:
    """Training images, at least `count` if there are as many, preprocessed as the network's description says."""
    check_images(options, function)
    config, preprocessing = description.network, description.preprocessing
    events = preprocessing.events
    data = training_split(
        options,
        None if events else config.image_size,
        cropped=preprocessing.fit == "crop",
        max_samples=None if events is None else count,  # reads only as many recordings
        streaming=events is None,
        events=events,
    )
    wanted, found = (config.in_channels, *config.image_size), tuple(data.shape[1:])
    if found != wanted:
        raise ConversionError(f"{function}: images must be {wanted} (C, height, width); got {found}.")
    return data


def check_images(options: CalibrationImages, function: str) -> None:
    """Raise ConversionError unless a data set is named."""
    if options.dataset is None and options.data_dir is None:
        raise ConversionError(
            f"{function}: --data-dir or --dataset must name training images to calibrate on; got neither. "
            "Give one of them."
        )


def training_split(options: CalibrationImages, image_size: int | tuple[int, int] | None, **more: Any) -> ImageData:
    """The training images, resized if a size is given; `more`: see `load_images`."""
    return load_images(
        options.dataset,
        options.data_dir,
        image_column=options.image_column,
        label_column=options.label_column,
        image_size=image_size,
        samples_seed=options.seed,
        progress=True,
        **more,
    )


def draw(options: CalibrationImages, data: ImageData, count: int) -> Tensor:
    """`count` images, drawn by the seed; on the GPU if there is one, unless `cpu` is set."""
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    return draw_images(data, count, options.seed).to(device)
