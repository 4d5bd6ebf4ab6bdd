"""What is known about a model that is to be published, read from its run and its evaluation."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ttfs_triton.fault_options import FaultOptions
from ttfs_triton.hardware import Counts
from ttfs_triton.hub.datasets import UNNAMED, TrainingData, training_data, without_paths
from ttfs_triton.model.load import load_model
from ttfs_triton.model.locate import ModelFiles
from ttfs_triton.model.model import TTFSModel
from ttfs_triton.model.weights import LoadError
from ttfs_triton.nn import LayerStatistics, Neuron
from ttfs_triton.yaml_file import YamlError, read_mapping

# Keys of a run's configuration that others need to repeat it. The rest says where and how it ran here.
NETWORK_SETTINGS = (
    *("model", "block_convolutions", "head", "width", "batch_norm", "sync_batch_norm", "encoder", "readout"),
    *("identity_start", "psp_persistence_rise", "psp_persistence_order"),
    *(field.name for field in dataclasses.fields(Neuron)),
    *("bias", "weight_standardisation", "initial_gain", "dropout"),
)
PUBLISHED_SETTINGS = (
    *("preset", "trained_as"),
    *("validation_fraction", "max_train_samples", "max_test_samples", "image_size"),
    *("crop_padding", "crop_fill", "flip", "shift", "rotation", "auto_augment", "trivial_augment", "cutout"),
    *("mixup", "cutmix"),
    *("event_windows", "event_window_us", "event_pool", "event_sensor"),
    "random_resized_crop",
    "network",
    *NETWORK_SETTINGS,
    "calibration_images",
    *("time_steps", "weight_bits", "weight_units", "learn_units", "state_bits", "grid_chip"),
    *FaultOptions.model_fields,
    *("target_sparsity", "target_operations", "target_energy", "target_steps"),
    *("epochs", "batch_size", "gradient_accumulation", "optimizer", "lr", "momentum", "weight_decay", "schedule"),
    *("warmup", "start_factor", "end_factor", "milestones", "milestone_factor", "gradient_clip", "label_smoothing"),
    *("teacher", "teacher_weight"),
    *("norm_bias_rate", "norm_gain_rate", "readout_rate", "ema_decay", "lookahead"),
    *("seed", "mixed_precision", "gradient_compression", "compile"),
)
_VERSIONS = ("python", "ttfs-triton", "torch", "triton", "accelerate", "datasets", "safetensors")
_METRICS = (
    *("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_first_spike_accuracy"),
    *("sparsity", "sparsity_with_outputs", "layer_sparsity", "seconds", "images_per_second"),
)


@dataclass(frozen=True)
class Results:
    """Figures over test images.

    Attributes:
        accuracy, first_spike_accuracy: shares, by the readout and by the earliest output spike.
        images: scored.
        ties, no_spike: images with several first output spikes, and without any.
        sparsity: hidden spikes over hidden neurons.
        layers: activity, the readout last.
        counts: exact, or None if the run did not count.
        simulation: "accuracy", "steps" and "weight_bits" of an integer simulation, or None.
        limited: some of the test images were asked for, not all.
    """

    accuracy: float
    first_spike_accuracy: float
    images: int
    ties: int
    no_spike: int
    sparsity: float
    layers: tuple[LayerStatistics, ...] = ()
    counts: Counts | None = None
    simulation: Mapping[str, Any] | None = None
    limited: bool = False


@dataclass(frozen=True)
class ModelFacts:
    """A model and what is known about it. Nothing here names this machine, its users or its folders.

    Attributes:
        model: loaded, in evaluation mode.
        weights_sha256: of the file, hexadecimal; None for a model that was not loaded from one.
        data: that it was trained on.
        results: None if it was not evaluated.
        settings: of training, by `PUBLISHED_SETTINGS`; empty if it was not trained here.
        versions: of Python and packages.
        device: that trained it, or "".
        epochs, best_epoch, val_accuracy, seconds_per_epoch: of training, or None.
        metrics: one entry an epoch.
        unrecorded_base: training started from other weights, of which nothing was written down.
    """

    model: TTFSModel
    weights_sha256: str | None = None
    data: TrainingData = UNNAMED
    results: Results | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    epochs: int | None = None
    best_epoch: int | None = None
    val_accuracy: float | None = None
    seconds_per_epoch: float | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    unrecorded_base: bool = False


def read_facts(
    files: ModelFiles,
    *,
    evaluation: Path | None = None,
    dataset: str | None = None,
    network: str | nn.Module | None = None,
) -> ModelFacts:
    """Load a model and all that is written down about it.

    Args:
        files: of the model.
        evaluation: folder or evaluation.json that `recipes/evaluate.py` wrote; its figures replace those of training.
        dataset: what it was trained on, if the run does not say.
        network: or "file.py:function" that builds it, if code of the user's does.
    Raises:
        LoadError: damaged or unfinished; or an evaluation of other weights, or on other data.
        ValueError: `dataset` is no name on the Hub.
    """
    model = load_model(files, network)
    sha256 = files.sha256
    settings, summary, metrics = {}, {}, []
    if files.run is not None:
        settings = _yaml(files.run / "config.yaml")
        summary = _json(files.run / "summary.json", "A run writes it when it ends: go on with it by --resume.")
        metrics = _metrics(files.run / "metrics.jsonl")
    data = training_data(settings, model.description.dataset, model.description.network, dataset)
    if evaluation is not None:
        path = evaluation / "evaluation.json" if evaluation.is_dir() else evaluation
        results = _evaluated(path, sha256, model, data, summary.get("test_fingerprint"))
    else:
        limited = settings.get("max_test_samples") is not None
        results = _results(summary, "test_", files.weights, limited) if summary else None
    return ModelFacts(
        model=model,
        weights_sha256=sha256,
        data=data,
        results=results,
        settings={key: without_paths(settings[key]) for key in _published_keys(settings) if key in settings},
        versions={name: str(summary["versions"][name]) for name in _VERSIONS if name in summary.get("versions", {})},
        device=str(summary.get("device", "")),
        epochs=summary.get("epochs"),
        best_epoch=summary.get("best_epoch"),
        val_accuracy=summary.get("val_accuracy"),
        seconds_per_epoch=summary.get("seconds_per_epoch"),
        metrics=metrics,
        unrecorded_base=settings.get("weights") is not None and model.description.base_model is None,
    )


def _published_keys(settings: Mapping[str, Any]) -> Sequence[str]:
    """Without those that a network of the user's does not follow."""
    if settings.get("network") is None:
        return PUBLISHED_SETTINGS
    return [key for key in PUBLISHED_SETTINGS if key not in NETWORK_SETTINGS]


def _evaluated(path: Path, sha256: str, model: TTFSModel, data: TrainingData, tested: str | None) -> Results:
    """Figures of an evaluation, if it is of these weights, and on the images that are claimed.

    Args:
        tested: fingerprint of the test images of the run, which is that of equal ones wherever they were read.
    """
    found = _json(path, "recipes/evaluate.py --output-dir writes it.")
    if found.get("weights_sha256") != sha256:
        raise LoadError(f"publish: {path} must be an evaluation of these weights; it is of others. Evaluate them.")
    if "fingerprint" not in found:
        raise LoadError(f"publish: {path} must say which images it is of; an older version wrote it. Evaluate again.")
    named = data.recorded is not None and found.get("dataset") == data.recorded
    unknown = data.recorded is None and tested is None
    same = named or unknown or (tested is not None and found["fingerprint"] == tested)
    if not same or found.get("class_names") != list(model.class_names):
        on = found.get("dataset") or "a local folder, with other images"
        raise LoadError(
            f"publish: {path} must be an evaluation on the test images of {data.name}; it is on {on!s:.80}. "
            "Evaluate on the data that it was trained beside."
        )
    return _results(found, "", path, found.get("max_test_samples") is not None)


def _results(found: Mapping[str, Any], prefix: str, path: Path, limited: bool) -> Results:
    try:
        counts, simulation = found.get("counts"), found.get("simulation")
        if counts is not None:
            counts = Counts.from_dict(counts)
        return Results(
            accuracy=float(found[f"{prefix}accuracy"]),
            first_spike_accuracy=float(found[f"{prefix}first_spike_accuracy"]),
            images=int(found["images" if not prefix else f"{prefix}images"]),
            ties=int(found["ties"]),
            no_spike=int(found["no_spike"]),
            sparsity=float(found["sparsity"]),
            layers=tuple(map(_layer, found["per_layer"])) if counts is None else counts.layers,
            counts=counts,
            simulation=simulation and {key: simulation[key] for key in ("accuracy", "steps", "weight_bits")},
            limited=limited,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise LoadError(f"publish: the figures beside {path} must be what was written there; {error!r}.") from error


def _layer(found: Mapping[str, Any]) -> LayerStatistics:
    """A layer in the summary of a run that did not count operations."""
    kind = "readout" if found["output"] else "spiking"
    values = {key: found[key] for key in ("name", "samples", "neurons", "spikes", "saturated", "never_active")}
    return LayerStatistics(kind=kind, **values)


def _json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"publish: {path} must be there and readable; {error}. {remedy}") from error
    if not isinstance(found, dict):
        raise LoadError(f"publish: {path} must hold an object; got {type(found).__name__}.")
    return found


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return read_mapping(path)
    except (OSError, YamlError) as error:
        raise LoadError(f"publish: {path} must be the run's configuration; {error}") from error


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Figures by epoch; none if there are none. Whatever is no figure stays here."""
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LoadError(f"publish: {path} must hold one JSON object a line; {error}.") from error
    return [{key: _figures(line[key]) for key in _METRICS if key in line} for line in lines]


def _figures(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _figures(entry) for key, entry in value.items()}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and math.isfinite(value) else None
