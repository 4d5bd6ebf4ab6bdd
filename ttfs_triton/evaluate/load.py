"""Loading of a trained network from a run, a file or the Hub, and of the test images that it is scored on."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttfs_triton.data.images import ImageData, load_images
from ttfs_triton.data.sources import HUB_NAME, SAMPLE
from ttfs_triton.model import LoadError, ModelDescription, ModelFiles, TTFSModel, find_model
from ttfs_triton.untrusted_files import YamlError, read_mapping

logger = logging.getLogger(__name__)

# Keys of a run's configuration that are arguments of `load_images`.
KEYS = ("dataset", "data_dir", "image_column", "label_column", "image_size", "max_bad_images", "streaming")


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with trained weights.

    Attributes:
        network: in evaluation mode, on the CPU, in float32.
        files: the files that it was loaded from.
    """

    network: TTFSModel
    files: ModelFiles

    @property
    def description(self) -> ModelDescription:
        """Class names, preprocessing, and the data set that the network was trained on."""
        return self.network.description


def load_network(source: str | Path, network: str | None = None) -> LoadedNetwork:
    """A trained network, in float32 whatever dtype its weights were saved in.

    Args:
        source: a run's folder (its best weights are loaded), a folder with config.json and model.safetensors, a
            safetensors file with a config.json beside it, or, as a string, "owner/name[@revision]" on the Hub or
            "bundled:NAME" for a network that comes with the package.
        network: "file.py:function" that builds the network, if the user's code does so.
    Raises:
        LoadError: nothing was found, a file is damaged, weights and configuration do not match, or weights are NaN or
            infinite.
        HubError: the repository does not exist or may not be read, or there is neither a connection nor a cached copy.
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
    """Test images of the data set that a network was trained on, or of another data set.

    A warning is logged if the data set's classes have other names than the network's.

    Args:
        loaded: the network; its run's configuration, or else its config.json, names data set, image size and columns.
        dataset, data_dir, image_column, label_column, max_samples, progress: see `load_images`; they override `loaded`.
    Raises:
        ValueError: no data set is named, or the images' shape, the number of classes or their order differs from the
            network's.
        OSError, RuntimeError: the images cannot be downloaded or read.
    """
    values = _configured(loaded)
    if dataset is not None or data_dir is not None:
        values |= {"dataset": dataset, "data_dir": data_dir}
    values |= {key: name for key, name in {"image_column": image_column, "label_column": label_column}.items() if name}
    if values.get("dataset") is None and values.get("data_dir") is None:
        raise ValueError(
            f"load_test_images: {loaded.files.config} must name a data set on the Hub; got "
            f"{loaded.description.dataset!r}. Give --data-dir or --dataset."
        )
    config, names = loaded.description.network, list(loaded.network.class_names)
    data = load_images(**values, split="test", classes=names, max_samples=max_samples, progress=progress)
    expected = (config.in_channels, *config.image_size)
    if expected != data.shape[1:]:
        raise ValueError(
            f"load_test_images: images of {data.name} must be {expected} (C, height, width), as the network reads; got "
            f"{data.shape[1:]}. Give the network's data, by --dataset or --data-dir."
        )
    if len(data.class_names) != config.classes:
        raise ValueError(
            f"load_test_images: {data.name} must have {config.classes} classes, as the network; got "
            f"{len(data.class_names)}. Give the network's data, or train it for these: --weights and --new-readout."
        )
    check_class_names(loaded, data)
    return data


def check_class_names(loaded: LoadedNetwork, data: ImageData) -> None:
    """Raise ValueError if the data's classes are the network's in another order; log a warning if they are others."""
    names = list(loaded.network.class_names)
    if names == data.class_names:
        return
    if sorted(names) == sorted(data.class_names):
        raise ValueError(f"{data.name}: classes must be in the order {names}; got {data.class_names}.")
    told = [", ".join(some[:3]) + ", …" * (len(some) > 3) for some in (names, data.class_names)]
    logger.warning("the network's classes are %s, but the test images have %s. Is this its data set?", *told)


def _configured(loaded: LoadedNetwork) -> dict[str, Any]:
    """Arguments of `load_images` from the run's configuration, or from config.json if there is no run."""
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
    arguments = {key: values[key] for key in KEYS if values.get(key) is not None}
    return arguments | {"cropped": bool(values.get("random_resized_crop")), "events": events}
