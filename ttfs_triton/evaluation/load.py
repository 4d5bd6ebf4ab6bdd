"""A trained network from a run's folder, from its weights, or from the Hub; and the images that it is scored on."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttfs_triton.data.images import ImageData, load_images
from ttfs_triton.data.sources import HUB_NAME, SAMPLE
from ttfs_triton.model import LoadError, ModelDescription, ModelFiles, TTFSModel, find_model
from ttfs_triton.untrusted_files import YamlError, read_mapping

# What a run's configuration says about its data, by the arguments of `load_images`.
KEYS = ("dataset", "data_dir", "image_column", "label_column", "image_size", "max_bad_images", "streaming")


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with trained weights.

    Attributes:
        network: in evaluation mode, on the CPU, in float32.
        files: where it came from.
    """

    network: TTFSModel
    files: ModelFiles

    @property
    def description(self) -> ModelDescription:
        """Class names, preprocessing, and the data set that it was trained on."""
        return self.network.description


def load_network(source: str | Path, network: str | None = None) -> LoadedNetwork:
    """Rebuild a network, in float32 whatever precision its weights were saved in.

    Args:
        source: a run's folder (its best weights are taken), a folder with config.json and model.safetensors, a
            safetensors file with a config.json beside it, or, as a string, "owner/name[@revision]" on the Hub or
            "bundled:NAME", which comes with the package.
        network: "file.py:function" that builds it, if code of the user's does.
    Raises:
        LoadError: nothing there, a file that is damaged, one that does not belong to the network beside it, or weights
            that are NaN or infinite.
        HubError: no such repository, no right to read it, or no connection and nothing in the cache.
    """
    files = find_model(source)
    return LoadedNetwork(TTFSModel.from_files(files, network).float(), files)


def load_test_images(
    loaded: LoadedNetwork,
    *,
    dataset: str | None = None,
    data_dir: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_samples: int | None = None,
    progress: bool = False,
) -> ImageData:
    """The test images of the data that a network was trained on, or other ones.

    Args:
        loaded: its run's configuration, or else config.json, names the data, image size and columns.
        dataset, data_dir, image_column, label_column, max_samples, progress: see `load_images`; they take precedence.
    Warns:
        UserWarning: the data's classes have other names than the network's.
    Raises:
        ValueError: nothing says which data; or images of another shape, another number of classes or another order of
            classes than the network has.
        OSError, RuntimeError: data that cannot be had.
    """
    values = _configured(loaded)
    if dataset is not None or data_dir is not None:
        values |= {"dataset": dataset, "data_dir": data_dir}
    values |= {key: name for key, name in (("image_column", image_column), ("label_column", label_column)) if name}
    if values.get("dataset") is None and values.get("data_dir") is None:
        raise ValueError(
            f"load_test_images: {loaded.files.config} must name a data set on the Hub; got "
            f"{loaded.description.dataset!r}. Give --data-dir or --dataset."
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
    config = loaded.description.network
    expected, found = (config.in_channels, *config.image_size), data.shape[1:]
    if expected != found:
        raise ValueError(f"load_test_images: images must be {expected} (channels, height, width); got {found}.")
    if len(data.class_names) != config.classes:
        raise ValueError(f"load_test_images: data must have {config.classes} classes; got {len(data.class_names)}.")
    names = list(loaded.network.class_names)
    if names != data.class_names and sorted(names) == sorted(data.class_names):
        raise ValueError(f"load_test_images: classes must be in the order {names}; got {data.class_names}.")
    if names != data.class_names:
        told = (", ".join(some[:3]) + ", …" * (len(some) > 3) for some in (names, data.class_names))
        message = "the network's classes are {}; those of the test images are {}. Is this its data set?"
        warnings.warn(message.format(*told), stacklevel=2)
    return data


def _configured(loaded: LoadedNetwork) -> dict[str, Any]:
    """Arguments of `load_images` from the run's configuration, or else from config.json."""
    path = None if loaded.files.run is None else loaded.files.run / "config.yaml"
    events = loaded.description.preprocessing.events
    if path is None or not path.is_file():
        if events is not None:
            return {"events": events}
        name, size = loaded.description.dataset or "", loaded.description.network.image_size
        cropped = loaded.description.preprocessing.fit == "crop"
        return {"image_size": size, "cropped": cropped} | (
            {"dataset": name} if name == SAMPLE or HUB_NAME.fullmatch(name) else {}
        )
    try:
        values = read_mapping(path)
    except YamlError as error:
        raise LoadError(f"load_test_images: {path} {error}") from error
    found = {key: values[key] for key in KEYS if values.get(key) is not None}
    return found | {"cropped": bool(values.get("random_resized_crop")), "events": events}
