"""How a point is trained: as its run was, from the run's weights, with the point's keys."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ttfs_triton.evaluation import LoadedNetwork
from ttfs_triton.frontier.options import FrontierOptions
from ttfs_triton.frontier.points import Point
from ttfs_triton.model.bundled import PREFIX, bundled_facts
from ttfs_triton.nn import NetworkConfig
from ttfs_triton.train.config import TrainConfig, make_config, read_yaml, without_retired

# Of the run, and not of what follows from it.
_OWN = {
    "preset": None,
    "trained_as": None,
    "output_dir": None,
    "resume": False,
    "overwrite": False,
    "push_to_hub": False,
    "hub_repo_id": None,
    "trackers": (),
    "profile": 0,
    "psp_persistence_rise": None,
}


def settings_of(source: str, loaded: LoadedNetwork, options: FrontierOptions) -> dict[str, Any]:
    """Keys of a run that goes on from a network as it was trained, with what the options say.

    Args:
        source: as the user named the network.
        loaded: the network.
        options: of the sweep.
    Raises:
        ConfigError: a configuration file that cannot be read.
    """
    files = loaded.files
    if files.run is not None and (files.run / "config.yaml").is_file():
        values = without_retired(read_yaml(files.run / "config.yaml"))
    elif files.bundled:
        values = without_retired(bundled_facts(source.removeprefix(PREFIX))["training"]["settings"])
    else:
        values = {}
    values |= _OWN | {"cpu": options.cpu}
    if isinstance(loaded.description.network, NetworkConfig):
        known = _network_keys(loaded.description.network)
        values = known | values | {"weight_standardisation": known["weight_standardisation"]}  # it may have been folded
    else:
        values["network"] = options.network
    values["dataset"] = values.get("dataset") or loaded.description.dataset
    if options.dataset is not None or options.data_dir is not None:
        # A folder is read instead of a name, which stays: it is what networks of this sweep say they were trained on.
        values |= {"dataset": options.dataset or values["dataset"], "data_dir": options.data_dir}
    for name in ("max_train_samples", "max_test_samples"):
        values[name] = getattr(options, name) or values.get(name)
    usual = TrainConfig.model_fields
    values["lr"] = options.lr or values.get("lr", usual["lr"].default) / 2
    values["epochs"] = options.epochs
    if values.get("schedule") == "milestones":
        values |= {"schedule": "one_cycle", "milestones": ()}
    values["weights"] = source if files.bundled or files.repo_id else str(Path(source).resolve())
    return values | ({} if options.config is None else read_yaml(options.config))


def point_config(settings: dict[str, Any], point: Point | None, folder: Path) -> TrainConfig:
    """The run that trains a point; without a point, the run that would go on as before.

    Raises:
        ConfigError: keys that exclude each other, or values out of range; names each.
    """
    values = settings | ({} if point is None else point.values()) | {"output_dir": folder}
    if values.get("batch_norm") and values.get("time_steps") is not None:  # on a grid it is folded
        values |= {"batch_norm": False, "weight_standardisation": False}
    return make_config(values, "its run" if point is None else point.name)


def _network_keys(config: NetworkConfig) -> dict[str, Any]:
    """Keys that build the network again."""
    return {
        "model": config.specification,
        "width": config.width,
        "encoder": config.encoder,
        "readout": config.readout,
        "bias": config.bias,
        "weight_standardisation": config.weight_standardisation,
        "batch_norm": config.batch_norm,
        "dropout": config.dropout,
        "initial_gain": config.initial_gain,
        **dataclasses.asdict(config.neuron),
    }
