"""What is known about a model that is to be published, read from its run and its evaluation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import nn

from ttfs_triton.fault_options import FaultOptions
from ttfs_triton.hardware import Counts
from ttfs_triton.hub.datasets import UNNAMED, TrainingData, training_data, without_paths
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

MOST = 1e300
"""Bound of published figures."""
Written = TypeVar("Written", "Results", "Training")
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[int, Field(ge=0, lt=2**63)]
_WRITTEN = ConfigDict(extra="ignore", allow_inf_nan=False, arbitrary_types_allowed=True)


def _counts(values: Any) -> Counts | None:
    if not (values is None or isinstance(values, Counts | Mapping)):
        raise ValueError("must be an object")
    return Counts.from_dict(values) if isinstance(values, Mapping) else values


@dataclass(frozen=True, config=_WRITTEN)
class _Layer:
    """A layer in the summary of a run that did not count operations."""

    name: str
    samples: Annotated[Number, Field(ge=1)]
    neurons: Number
    spikes: Number
    saturated: Number
    never_active: Number
    output: bool


def _layer(found: Any) -> LayerStatistics:
    if isinstance(found, LayerStatistics):
        return found
    values = dataclasses.asdict(TypeAdapter(_Layer).validate_python(found))
    return LayerStatistics(kind="readout" if values.pop("output") else "spiking", **values)


@dataclass(frozen=True, config=_WRITTEN)
class Simulation:
    """An integer simulation: its accuracy, time steps a window, and bits of a weight, None for unrounded ones."""

    accuracy: Share
    steps: Number
    weight_bits: Number | None


@dataclass(frozen=True, config=_WRITTEN)
class Results:
    """Figures over test images, as summary.json and evaluation.json hold them.

    Attributes:
        accuracy, first_spike_accuracy: shares, by the readout and by the earliest output spike.
        images: scored.
        ties, no_spike: images with several first output spikes, and without any.
        sparsity: hidden spikes over hidden neurons.
        per_layer: activity, the readout last, where nothing was counted.
        counts: exact, or None if the run did not count.
        simulation: in integers, or None.
        limited: some of the test images were asked for, not all.
    """

    accuracy: Share
    first_spike_accuracy: Share
    images: Annotated[Number, Field(ge=1)]
    ties: Number
    no_spike: Number
    sparsity: Share
    per_layer: tuple[Annotated[Any, BeforeValidator(_layer)], ...] = ()
    counts: Annotated[Counts | None, PlainValidator(_counts)] = None
    simulation: Simulation | None = None
    limited: bool = False

    @property
    def layers(self) -> tuple[LayerStatistics, ...]:
        """Activity of each layer."""
        return self.per_layer if self.counts is None else self.counts.layers


@dataclass(frozen=True, config=_WRITTEN)
class Training:
    """What a run's summary.json says beside its results.

    Attributes:
        weights_sha256: of the weights that were scored; None of runs that did not write it down.
        test_fingerprint: of the test images, likewise.
        versions: of Python and packages.
        device: that trained it, or "".
        epochs, best_epoch, val_accuracy, seconds_per_epoch: of training, or None.
    """

    weights_sha256: str | None = None
    test_fingerprint: str | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    device: str = ""
    epochs: Number | None = None
    best_epoch: Number | None = None
    val_accuracy: Share | None = None
    seconds_per_epoch: Annotated[float, Field(ge=0)] | None = None


@dataclasses.dataclass(frozen=True)
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
        unsigned: the run's summary does not say which weights it is of.
    """

    model: TTFSModel
    weights_sha256: str | None = None
    data: TrainingData = UNNAMED
    results: Results | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    device: str = ""
    epochs: int | None = None
    best_epoch: int | None = None
    val_accuracy: float | None = None
    seconds_per_epoch: float | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    unrecorded_base: bool = False
    unsigned: bool = False


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
    model = TTFSModel.from_files(files, network)
    sha256 = files.sha256
    settings, summary, metrics = {}, {}, []
    if files.run is not None:
        settings = _yaml(files.run / "config.yaml")
        summary = _json(files.run / "summary.json", "A run writes it when it ends: go on with it by --resume.")
        metrics = _metrics(files.run / "metrics.jsonl")
    training = _read(Training, summary, files.weights)
    if training.weights_sha256 not in (None, sha256):
        raise LoadError(
            f"publish: {files.weights} must be the weights that summary.json is of, SHA-256 {training.weights_sha256}; "
            f"got {sha256}. Put the run's own back, or publish the folder best/ alone."
        )
    data = training_data(settings, model.description.dataset, model.description.network, dataset)
    if evaluation is not None:
        path = evaluation / "evaluation.json" if evaluation.is_dir() else evaluation
        results = _evaluated(path, sha256, model, data, training.test_fingerprint)
    else:
        limited = settings.get("max_test_samples") is not None
        scored = {key.removeprefix("test_"): value for key, value in summary.items()} | {"limited": limited}
        results = _read(Results, scored, files.weights) if summary else None
    return ModelFacts(
        model=model,
        weights_sha256=sha256,
        data=data,
        results=results,
        settings={key: without_paths(settings[key]) for key in _published_keys(settings) if key in settings},
        versions={name: training.versions[name] for name in _VERSIONS if name in training.versions},
        device=training.device,
        epochs=training.epochs,
        best_epoch=training.best_epoch,
        val_accuracy=training.val_accuracy,
        seconds_per_epoch=training.seconds_per_epoch,
        metrics=metrics,
        unrecorded_base=settings.get("weights") is not None and model.description.base_model is None,
        unsigned=bool(summary) and training.weights_sha256 is None,
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
    return _read(Results, found | {"limited": found.get("max_test_samples") is not None}, path)


def _read(kind: type[Written], values: Mapping[str, Any], path: Path) -> Written:
    """What was written down, its values in range."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        found = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False)[:5])
        problem = "; ".join(found)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        problem = f"{error!r:.300}."
    raise LoadError(f"publish: the figures beside {path} must be what was written there; {problem}")


def _json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        found = _json_values(_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"publish: {path} must be there and readable; {error}. {remedy}") from error
    if not isinstance(found, dict):
        raise LoadError(f"publish: {path} must hold an object; got {type(found).__name__}.")
    return found


def _json_values(text: str) -> Any:
    """JSON values, with None for numbers that are not finite or out of any figure's range."""

    def real(digits: str) -> float | None:
        value = float(digits)
        return value if abs(value) < MOST else None

    def whole(digits: str) -> int | None:
        return int(digits) if len(digits) < 19 else None

    return json.loads(text, parse_int=whole, parse_float=real, parse_constant=lambda _: None)


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise OSError("it is no file")
    return path.read_text(encoding="utf-8")


def _yaml(path: Path) -> dict[str, Any]:
    try:
        _text(path)
        return read_mapping(path)
    except (OSError, YamlError, UnicodeDecodeError) as error:
        raise LoadError(f"publish: {path} must be the run's configuration; {error}") from error


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Figures by epoch; none if there are none. Whatever is no figure stays here."""
    if not path.exists():
        return []
    try:
        lines = [_json_values(line) for line in _text(path).splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"publish: {path} must hold one JSON object a line; {error}.") from error
    if wrong := [line for line in lines if not isinstance(line, dict)]:
        raise LoadError(f"publish: {path} must hold one JSON object a line; got {wrong[0]!r:.80}.")
    return [{key: _figures(line[key]) for key in _METRICS if key in line} for line in lines]


def _figures(value: Any) -> Any:
    """A number, or such by name; None for anything else."""
    if isinstance(value, Mapping):
        return {str(key): _figures(entry) for key, entry in value.items() if not isinstance(entry, Mapping)}
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
