"""The images that a trained network is scored on."""

from pathlib import Path

import yaml

from ttfs_triton.evaluation.load import LoadedNetwork
from ttfs_triton.train.data import ImageData, load_images

# What a run's configuration says about its data, by the arguments of `load_images`.
KEYS = ("dataset", "data_dir", "image_column", "label_column", "image_size", "max_bad_images", "streaming")


def load_test_images(
    loaded: LoadedNetwork,
    *,
    dataset: str | None = None,
    data_dir: Path | None = None,
    max_samples: int | None = None,
    progress: bool = False,
) -> ImageData:
    """The test split that a network was trained beside, or another one.

    Args:
        loaded: whose run says which data, image size and columns to take.
        dataset, data_dir: a Hub name or a local folder in their place.
        max_samples: use only the first ones.
        progress: show a bar while images are decoded.
    Raises:
        ValueError: nothing says which data; or images of another shape or other classes than the network has.
        OSError, RuntimeError: data that cannot be had.
    """
    values = _configured(loaded)
    if dataset is not None or data_dir is not None:
        values |= {"dataset": dataset, "data_dir": data_dir}
    if values.get("dataset") is None and values.get("data_dir") is None:
        raise ValueError(
            f"load_test_images: {loaded.weights} must have a run's config.yaml that names its data; there is none. "
            "Give --data-dir or --dataset."
        )
    folder = values.pop("data_dir", None)
    data = load_images(
        values.pop("dataset", None),
        None if folder is None else Path(folder),
        split="test",
        like=None,
        max_samples=max_samples,
        progress=progress,
        **values,
    )
    config = loaded.network.config
    expected, found = (config.in_channels, *config.image_size), data.shape[1:]
    if expected != found:
        raise ValueError(f"load_test_images: images must be {expected} (channels, height, width); got {found}.")
    if len(data.class_names) != config.classes:
        raise ValueError(f"load_test_images: data must have {config.classes} classes; got {len(data.class_names)}.")
    return data


def _configured(loaded: LoadedNetwork) -> dict:
    """What the run's configuration says about its data."""
    path = None if loaded.run is None else loaded.run / "config.yaml"
    if path is None or not path.is_file():
        return {}
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {key: values[key] for key in KEYS if values.get(key) is not None}
