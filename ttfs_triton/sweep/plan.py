"""Plan of a sweep: its networks and points, checked before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttfs_triton.energy import load_chip
from ttfs_triton.evaluate.load import LoadedNetwork, load_network
from ttfs_triton.model.files import PREFIX, bundled_facts
from ttfs_triton.nn import NetworkConfig
from ttfs_triton.sweep import GRID, TARGETS, FrontierOptions, folder_name, point_name
from ttfs_triton.train.config import (
    FREE_ON_RESUME,
    ConfigError,
    TrainConfig,
    check_typed_network,
    differing_keys,
    make_config,
    read_yaml,
)
from ttfs_triton.train.run_folder import RunFolder, RunFolderError
from ttfs_triton.training_options import EventOptions

# Keys that a run does not take over from the run whose weights it continues.
_NOT_TAKEN_OVER = (
    *("preset", "output_dir", "resume", "overwrite", "push_to_hub", "hub_repo_id"),
    *("trackers", "psp_persistence_rise", "new_readout", "max_test_samples"),
)

# A point on a grid folds batch norm into the weights. The run's optimizer and rates suit weights in front of batch
# norm, so these keys are reset. The learning rate was measured on cifarnet.
_FOLDED: dict[str, object] = {"batch_norm": False, "sync_batch_norm": False, "weight_standardisation": False}
_RESET = ("optimizer", "momentum", "weight_decay", "readout_rate", "schedule", "warmup", "gradient_clip", "lookahead")
_FOLDED |= {"lr": 3e-4} | {name: TrainConfig.model_fields[name].default for name in _RESET}

Settings = tuple[dict[str, Any], dict[str, Any]]
"""Keys of a run that continues a network's training: those of its earlier training, and those that the sweep sets."""


@dataclass(frozen=True)
class PlannedPoint:
    """A point to train, or one that has been trained; if its run has begun, `config` resumes it."""

    keys: dict[str, str]
    folder: RunFolder
    config: TrainConfig

    @property
    def name(self) -> str:
        """The point as a text, for folders and rows."""
        return point_name(self.keys)

    @property
    def ended(self) -> bool:
        """Whether the point has been trained to the end."""
        return self.folder.read_summary() is not None


@dataclass(frozen=True)
class PlannedNetwork:
    """A network of the sweep and its points to train."""

    name: str  # for folders and rows
    loaded: LoadedNetwork
    config: TrainConfig  # of a run that continues the network's training; says which images to read, and how
    points: tuple[PlannedPoint, ...]


def make_plan(options: FrontierOptions) -> list[PlannedNetwork]:
    """The networks of a sweep and their points; a ConfigError names all impossible points. Images are not checked."""
    for chip in options.chip:
        load_chip(chip)
    networks = [_network(source, options) for source in options.runs]
    names = [network.name for network in networks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"frontier: runs must differ in their names; got {', '.join(twice)} twice. Rename a folder.")
    return networks


def _network(source: str, options: FrontierOptions) -> PlannedNetwork:
    loaded = load_network(source, options.network)
    name = loaded.files.name
    settings = settings_of(source, loaded, options)
    keys = settings[0] | settings[1]
    if keys["dataset"] is None and keys.get("data_dir") is None:
        raise ConfigError(f"frontier: --data-dir or --dataset must name the images of {source}; got neither.")
    problems, points = [], []
    for point, keys in options.trained().items():
        try:
            path = options.output_dir / "points" / name / folder_name(point)
            points.append(_planned(point_config(settings, keys, path, options.steps), keys, path))
        except (ConfigError, RunFolderError) as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("frontier: nothing was trained, because these points are impossible:\n" + "\n".join(problems))
    return PlannedNetwork(name, loaded, point_config(settings, {}, options.output_dir), tuple(points))


def _planned(config: TrainConfig, keys: dict[str, str], path: Path) -> PlannedPoint:
    folder = RunFolder(path)
    if not folder.is_run():
        return PlannedPoint(keys, folder, config)
    saved = make_config(read_yaml(path / "config.yaml"), str(path / "config.yaml"))
    config = config.model_copy(update={"cpu": saved.cpu, "resume": True})  # it resumes on the same device
    changes = {key: pair for key, pair in differing_keys(saved, config).items() if key not in FREE_ON_RESUME}
    if changes:
        lines = ", ".join(f"{key}: {before!r} → {after!r}" for key, (before, after) in changes.items())
        raise ConfigError(
            f"{path} holds a run of other settings, {lines}. Give the old ones, or another --output-dir, or remove it."
        )
    return PlannedPoint(keys, folder, config)


def settings_of(source: str, loaded: LoadedNetwork, options: FrontierOptions) -> Settings:
    """Keys of a run that continues a network's training."""
    files, values = loaded.files, _image_keys(loaded)
    if files.run is not None and (files.run / "config.yaml").is_file():
        values = read_yaml(files.run / "config.yaml")
    elif files.bundled:
        values = dict(bundled_facts(source.removeprefix(PREFIX))["training"]["settings"])
    values = {key: value for key, value in values.items() if key not in _NOT_TAKEN_OVER} | {"cpu": options.cpu}
    built = values.pop("network", None) is not None
    if isinstance(network := loaded.description.network, NetworkConfig):
        keys = _network_keys(network)
        values = values | keys if built else keys | values  # a built network's config.yaml does not describe it
        values["weight_standardisation"] = network.weight_standardisation  # it may be folded into the weights
    values["dataset"] = values.get("dataset") or loaded.description.dataset
    if options.dataset is not None or options.data_dir is not None:
        # With --data-dir the data set keeps its name, which networks of this sweep record as their training data.
        values |= {"dataset": options.dataset or values["dataset"], "data_dir": options.data_dir}
    values["max_train_samples"] = options.max_train_samples or values.get("max_train_samples")
    values["max_test_samples"] = options.max_test_samples
    values["lr"] = values.get("lr", TrainConfig.model_fields["lr"].default) / 2
    values["epochs"] = options.epochs
    values["weights"] = source if files.bundled or files.repo_id else str(Path(source).resolve())
    given = {} if options.lr is None else {"lr": options.lr}
    given |= {} if options.config is None else read_yaml(options.config)
    check_typed_network(given.get("network"), options.network, str(options.config))
    return values, given | {"network": options.network}


def point_config(settings: Settings, keys: Mapping[str, Any], folder: Path, steps: int = 32) -> TrainConfig:
    """Configuration of the run that trains a point; without keys, of one that only continues. Raises ConfigError.

    A point's energy target is that of a network without a grid at `steps` time steps.
    """
    run, overridden = settings
    others = dict.fromkeys(TARGETS) if keys.keys() & {*TARGETS} else {}  # a run has at most one target
    given = overridden | others | {**keys, "output_dir": folder}
    on_grid = (run | given).get("time_steps") is not None
    if "target_energy" in keys:
        run = run | {"target_steps": None if on_grid or steps == 32 else steps}
    if (run | given).get("batch_norm") and on_grid:
        run = run | _FOLDED
    values = run | given
    if values.get("target_energy") is None:
        values.pop("target_steps", None)
    return make_config(values, point_name(keys) or "its run")


def _image_keys(loaded: LoadedNetwork) -> dict[str, Any]:
    """Keys of a run that reads images as config.json says, for a network without its run's configuration."""
    read = loaded.description.preprocessing
    if (events := read.events) is not None:
        return dict(zip(EventOptions.model_fields, dataclasses.astuple(events), strict=True))
    square = read.size[0] if read.size[0] == read.size[1] else None
    return {"image_size": square, "random_resized_crop": read.fit == "crop"}


def _network_keys(config: NetworkConfig) -> dict[str, Any]:
    """Keys of a run that builds the same network."""
    same = ("width", "encoder", "readout", "bias", "weight_standardisation", "batch_norm", "dropout", "initial_gain")
    keys: dict[str, Any] = {name: getattr(config, name) for name in same}
    if (grid := config.grid) is not None:
        keys |= {key: getattr(grid, key) for key in GRID} | {
            "weight_units": "channel" if grid.per_channel else "tensor"
        }
    return {"model": config.specification, **keys, **dataclasses.asdict(config.neuron)}
