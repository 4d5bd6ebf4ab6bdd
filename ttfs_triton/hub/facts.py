"""Facts about a model that is to be published, read from its run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ttfs_triton.energy import Counts
from ttfs_triton.model import LoadError
from ttfs_triton.model.files import ModelFiles, bundled_facts
from ttfs_triton.model.hub import REPOSITORY
from ttfs_triton.model.model import TTFSModel
from ttfs_triton.run_records import SUMMARY, Summary, read_summary
from ttfs_triton.training_options import FREE_ON_RESUME, PROPERTIES, NetworkOptions, TrainConfig
from ttfs_triton.untrusted_files import read_mapping

SAMPLE = "sample"
_HUB_NAME = r"\w[\w.-]*/[\w.-]+(/[^@]+\.safetensors)?(@[\w./-]+)?"


def training_data(settings: Mapping[str, Any], recorded: str | None, stated: str | None) -> tuple[str | None, bool]:
    """Name of a run's data set, or None, and whether the run read it from a local folder.

    A folder's name and path are not published, and nothing compared its content with a data set: its name is the one
    that the user states, or None. A run's data set counts only if config.json, whose hash the weights hold, names it.

    Args:
        settings: the run's configuration; empty for bare weights.
        recorded: data set that config.json names.
        stated: data set that the user names.
    """
    if stated is not None and stated != SAMPLE and not REPOSITORY.fullmatch(stated):
        raise ValueError(f'publish: dataset must be "{SAMPLE}" or owner/name on the Hub; got {stated!r}.')
    local = settings.get("data_dir") is not None
    named = not local and settings.get("dataset", recorded) == recorded
    if named and (recorded == SAMPLE or REPOSITORY.fullmatch(str(recorded))):
        return stated or recorded, local
    return stated, local


def without_paths(value: Any) -> Any:
    """A setting as it may be published: a path becomes the name of its file, unless it can be a name on the Hub.

    A local teacher is never taken for a name on the Hub, since runs write its whole path.
    """
    if isinstance(value, str) and re.search(r"[/\\]", value) and not re.fullmatch(_HUB_NAME, value):
        return Path(value.replace("\\", "/")).name
    return value


# All settings are published except data set and base model, which the card names, and those that only say where and how
# a run ran here, among them most that a continuation may change.
_KEPT_HERE = {"dataset", "image_column", "label_column", "streaming", "weights", "cpu", "statistics_steps", "backend"}
PUBLISHED_SETTINGS = {*TrainConfig().model_dump()} - FREE_ON_RESUME - _KEPT_HERE | {"teacher"}
_TRAINING = ("epochs", "best_epoch", "val_accuracy", "seconds_per_epoch", "device", "versions")
_VERSIONS = ("python", "ttfs-triton", "torch", "triton", "accelerate", "datasets", "safetensors")


@dataclass(frozen=True)
class ModelFacts:
    """A model and its facts. Only `results` may have keys that name this machine or its users; no card shows these.

    Attributes:
        model: the loaded model, in evaluation mode.
        weights_sha256: SHA-256 of the file, hexadecimal; None for a model that was not loaded from a file.
        dataset: training data, a name on the Hub or "sample"; None if they are not recorded.
        local: whether the training data were read from a local folder, whose data set is the one that the user states.
        results: figures on test images; None if the model was not evaluated.
        counts: exact counts of operations on these images; None if the model was not evaluated.
        stated: facts of a bundled network, from `bundled_facts`, in place of `results`; empty for others.
        code: the user's Python file that builds the network, if it is to be published, too.
        settings: settings of training, keys of `PUBLISHED_SETTINGS`; empty if the model was not trained here.
        training: other figures of summary.json, keys of `_TRAINING`; empty if the model was not trained here.
        unrecorded_base: whether training started from other weights, whose origin was not recorded.
    """

    model: TTFSModel
    weights_sha256: str | None = None
    dataset: str | None = None
    local: bool = False
    results: Summary | None = None
    counts: Counts | None = None
    stated: Mapping[str, Any] = field(default_factory=dict)
    code: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    unrecorded_base: bool = False

    @property
    def hub_dataset(self) -> str | None:
        """The data set on the Hub that was read, for metadata and leaderboards; None for a local folder."""
        return None if self.local or self.dataset == SAMPLE else self.dataset

    @property
    def data_name(self) -> str:
        """The data set in words."""
        if self.dataset == SAMPLE:
            return "the sample of Fashion-MNIST that comes with ttfs-triton"
        return self.dataset or ("a local data set" if self.local else "a data set that is not recorded")

    @property
    def skipped(self) -> int:
        """Number of test images that could not be decoded, and were not scored."""
        return 0 if self.results is None else len(self.results.skipped_images.get("test", ()))

    @property
    def complete(self) -> bool:
        """Whether all test images were scored."""
        return self.results is not None and not self.skipped and self.settings.get("max_test_samples") is None


def read_facts(files: ModelFiles, *, dataset: str | None = None, network: str | nn.Module | None = None) -> ModelFacts:
    """Load a model, and collect facts from the files of its run.

    `network` is or builds a user-defined network. `dataset` names the training data on the Hub, if the run does not.
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
        training["versions"] = {name: version for name, version in training["versions"].items() if name in _VERSIONS}
        try:
            counts = Counts.from_dict(results.counts)
            for layer in counts.layers:
                if not layer.saturated <= layer.spikes <= layer.neurons * layer.samples > 0:
                    raise ValueError(f"{layer.name}: spikes must be at most 1 per neuron and image; got {layer.spikes}")
        except ValueError as error:
            raise LoadError(
                f"publish: {run / SUMMARY} must hold counts as they were written; {error!s:.500}"
            ) from error
    # If the user's code builds the network, the keys of a specification have no meaning.
    unused = set() if settings.get("network") is None else {*NetworkOptions.model_fields, *PROPERTIES}
    published = [key for key in settings if key in PUBLISHED_SETTINGS - unused]
    name, local = training_data(settings, model.description.dataset, dataset)
    return ModelFacts(
        model=model,
        weights_sha256=sha256,
        dataset=name,
        local=local,
        results=results,
        counts=counts,
        stated=stated,
        settings={key: without_paths(settings[key]) for key in published},
        training=training,
        unrecorded_base=settings.get("weights") is not None and model.description.base_model is None,
    )


def _read(path: Path, reader: Callable[[Path], Any], what: str) -> Any:
    """Read a file with `reader`; an error becomes a LoadError, which says that the file must be `what`."""
    try:
        return reader(path)
    except (OSError, ValueError) as error:
        raise LoadError(f"publish: {path} must be {what}; {error!s:.500}") from error
