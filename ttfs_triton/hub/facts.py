"""Facts about a model that is to be published, read from its run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ttfs_triton.energy import Counts
from ttfs_triton.model import LoadError
from ttfs_triton.model.files import ModelFiles, bundled_facts
from ttfs_triton.model.hub import REPOSITORY
from ttfs_triton.model.model import TTFSModel
from ttfs_triton.model.own_network import OwnNetwork
from ttfs_triton.nn import NetworkConfig
from ttfs_triton.run_records import SUMMARY, Summary, read_summary
from ttfs_triton.train.options import FREE_ON_RESUME, PROPERTIES, NetworkOptions, TrainConfig
from ttfs_triton.untrusted_files import read_mapping

SAMPLE = "sample"
_FASHION = "Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017"
_NO_LICENCE = "none that is formal; published for research, cite the source"
_CIFAR = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"


@dataclass(frozen=True)
class TrainingData:
    """A data set as a card names it.

    Attributes:
        id: name on the Hub, or None.
        name: name for readers.
        licence: licence in words, or None if not known.
        source: publication to cite, or "".
        test_images: number of images in the whole test set, or None if not known.
        local: the data were read from a local folder: the publisher states the name, and nothing was compared.
        classes: number of classes of the original, or None if not known.
    """

    id: str | None
    name: str
    licence: str | None = None
    source: str = ""
    test_images: int | None = None
    local: bool = False
    classes: int | None = None

    @property
    def seen(self) -> str | None:
        """The Hub data set that was read, for metadata and leaderboards; None for a local folder."""
        return None if self.local else self.id

    @property
    def recorded(self) -> str | None:
        """Name in a published config.json, by which the data can be loaded again, or None."""
        return self.seen or (SAMPLE if self.name == KNOWN[SAMPLE].name and not self.local else None)


UNNAMED = TrainingData(None, "a data set that is not named")
_DIGITS = "CC BY-SA 3.0 as its authors state it", "LeCun, Cortes and Burges, The MNIST Database of Handwritten Digits"
KNOWN = {
    data.id or SAMPLE: data
    for data in (
        TrainingData(
            None, "the sample of Fashion-MNIST that comes with ttfs-triton", "MIT", _FASHION, 1000, classes=10
        ),
        TrainingData("ylecun/mnist", "MNIST", *_DIGITS, 10_000, classes=10),
        TrainingData("zalando-datasets/fashion_mnist", "Fashion-MNIST", "MIT", _FASHION, 10_000, classes=10),
        TrainingData("uoft-cs/cifar10", "CIFAR-10", _NO_LICENCE, _CIFAR, 10_000, classes=10),
        TrainingData("uoft-cs/cifar100", "CIFAR-100", _NO_LICENCE, _CIFAR, 10_000, classes=100),
    )
}


def training_data(
    settings: Mapping[str, Any], recorded: str | None, network: NetworkConfig | OwnNetwork, stated: str | None = None
) -> TrainingData:
    """The data set of a run, without the name or path of any local folder.

    A local folder stays unnamed, whatever the recipe's default is: nothing compared its content with a data set. A
    run's data set counts only if config.json, whose hash the weights hold, names it too. A known data set must have the
    network's number of classes.

    Args:
        settings: the run's configuration; empty for bare weights.
        recorded: data set that config.json names.
        stated: data set that the user names; it takes precedence.
    """
    if stated is not None and stated != SAMPLE and not REPOSITORY.fullmatch(stated):
        raise ValueError(f'publish: dataset must be "{SAMPLE}" or owner/name on the Hub; got {stated!r}.')
    local = settings.get("data_dir") is not None
    name = stated or (recorded if settings.get("dataset", recorded) == recorded else None)
    known = KNOWN.get(str(name))
    if known is not None and known.classes != network.classes:
        name, known = None, None
    if stated is None and local:
        return TrainingData(None, "a local data set", local=True)
    if known is not None:
        return replace(known, local=local)
    if name is not None and REPOSITORY.fullmatch(str(name)):
        return TrainingData(str(name), str(name), local=local)
    return UNNAMED


def without_paths(value: Any, output_dir: str = "") -> Any:
    """A setting as it may be published: a path becomes the name of its file, unless it can only be a name on the Hub.

    "runs/NAME" is not taken for owner/name if `runs` is a folder here or a part of the run's `output_dir`: the
    network may have been deleted since, or the run may have been made elsewhere.
    """
    if isinstance(value, str) and re.search(r"[/\\]", value):
        hub = re.fullmatch(r"(?!.*\.toml)\w[\w.-]*/[\w.-]+(/[^@]+\.safetensors)?(@[\w./-]+)?", value)
        first = Path(value).parts[0]
        local = first in Path(output_dir).parts or Path(first).exists()
        return value if hub and not local else Path(value.replace("\\", "/")).name
    return value


# Published are all settings but those that say where and how a run ran here, as do most that a continuation may change,
# and data set and base model, which the card names.
_KEPT_HERE = {"dataset", "image_column", "label_column", "streaming", "weights", "cpu", "statistics_steps", "backend"}
PUBLISHED_SETTINGS = {*TrainConfig().model_dump()} - FREE_ON_RESUME - _KEPT_HERE | {"teacher"}
_TRAINING = ("epochs", "best_epoch", "val_accuracy", "seconds_per_epoch", "device", "versions")
_VERSIONS = ("python", "ttfs-triton", "torch", "triton", "accelerate", "datasets", "safetensors")


@dataclass(frozen=True)
class ModelFacts:
    """A model and its facts. Only `results` may have keys that name this machine or its users; no card shows them.

    Attributes:
        model: the loaded model, in evaluation mode.
        weights_sha256: SHA-256 of the file, hexadecimal; None for a model that was not loaded from a file.
        data: training data.
        results: figures over test images; None if the model was not evaluated.
        counts: exact counts of operations on these images; None as `results`.
        stated: facts of a bundled network, from `bundled_facts`, in place of `results`; empty for others.
        code: the user's Python file that builds the network, if it is to be published, too.
        settings: settings of training, keys of `PUBLISHED_SETTINGS`; empty if the model was not trained here.
        training: other figures of summary.json, keys of `_TRAINING`; empty if the model was not trained here.
        unrecorded_base: training started from other weights, whose origin was not recorded.
    """

    model: TTFSModel
    weights_sha256: str | None = None
    data: TrainingData = UNNAMED
    results: Summary | None = None
    counts: Counts | None = None
    stated: Mapping[str, Any] = field(default_factory=dict)
    code: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    unrecorded_base: bool = False

    @property
    def skipped(self) -> int:
        """Number of test images that could not be decoded, and were not scored."""
        return 0 if self.results is None else len(self.results.skipped_images.get("test", ()))

    @property
    def complete(self) -> bool:
        """Whether, as far as known, all test images were scored."""
        if self.results is None or self.skipped or self.settings.get("max_test_samples") is not None:
            return False
        return self.data.test_images in (None, self.results.test_images)


def read_facts(files: ModelFiles, *, dataset: str | None = None, network: str | nn.Module | None = None) -> ModelFacts:
    """Load a model, which `network` is or builds, and collect facts from the files of its run.

    `dataset` is the Hub name of the training data, if the run does not name them.
    """
    model, sha256, run = TTFSModel.from_files(files, network), files.sha256, files.run
    settings, training, results, counts = {}, {}, None, None
    stated = bundled_facts(files.name) if files.bundled else {}
    if stated:
        training, settings = stated["training"], stated["training"]["settings"]
    if run is not None:
        settings = _read(run / "config.yaml", read_mapping, "the run's configuration")
        figures = "a run's final figures, written when the run ends: continue the run by --resume"
        results = _read(run / SUMMARY, read_summary, figures)
        if results.weights_sha256 != sha256:
            raise LoadError(
                f"publish: {files.weights} must be the weights that summary.json describes, SHA-256 "
                f"{results.weights_sha256}; got {sha256}. Restore the run's weights, or publish the folder best/ "
                "alone."
            )
        training = {key: getattr(results, key) for key in _TRAINING}
        training["versions"] = {name: each for name, each in training["versions"].items() if name in _VERSIONS}
        try:
            counts = Counts.from_dict(results.counts)
            for layer in counts.layers:
                if not layer.saturated <= layer.spikes <= layer.neurons * layer.samples > 0:
                    raise ValueError(f"{layer.name}: spikes must be at most one a neuron and image; got {layer.spikes}")
        except ValueError as error:
            raise LoadError(
                f"publish: {run / SUMMARY} must hold counts as they were written; {error!s:.500}"
            ) from error
    # If the user's code builds the network, the keys of a specification have no meaning.
    unused = set() if settings.get("network") is None else {*NetworkOptions.model_fields, *PROPERTIES}
    published = [key for key in settings if key in PUBLISHED_SETTINGS - unused]
    return ModelFacts(
        model=model,
        weights_sha256=sha256,
        data=training_data(settings, model.description.dataset, model.description.network, dataset),
        results=results,
        counts=counts,
        stated=stated,
        settings={key: without_paths(settings[key], str(settings.get("output_dir"))) for key in published},
        training=training,
        unrecorded_base=settings.get("weights") is not None and model.description.base_model is None,
    )


def _read(path: Path, reader: Callable[[Path], Any], what: str) -> Any:
    """Read a file by its reader; an error becomes a LoadError, in which `what` says what the file must be."""
    try:
        return reader(path)
    except (OSError, ValueError) as error:
        raise LoadError(f"publish: {path} must be {what}; {error!s:.500}") from error
