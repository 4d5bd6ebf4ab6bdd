"""The configuration of a run: all options in one flat object, whose keys are those of YAML and of the command line."""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import ConfigDict, ValidationError, model_validator

from ttfs_triton.command_line import problem_lines
from ttfs_triton.fault_options import FaultOptions
from ttfs_triton.train.event_options import EventOptions
from ttfs_triton.train.options import (
    PROPERTIES,
    AugmentationOptions,
    DataOptions,
    GridOptions,
    HubOptions,
    NetworkOptions,
    OptimisationOptions,
    RunOptions,
    StartOptions,
    TargetOptions,
)
from ttfs_triton.yaml_file import YamlError, read_mapping


class TrainConfig(
    HubOptions,
    RunOptions,
    TargetOptions,
    FaultOptions,
    OptimisationOptions,
    GridOptions,
    StartOptions,
    NetworkOptions,
    EventOptions,
    AugmentationOptions,
    DataOptions,
):
    """Everything a run depends on. Saved as `config.yaml` in the run's folder.

    Faults happen to chips that are trained for: anew in each step, and not in validation. The last class comes first
    in YAML and `--help`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.network is not None and (given := self.network_keys()):
            raise ValueError(f"network builds all of a network: leave {', '.join(given)} out, and say it there")
        if self.batch_norm and self.time_steps is not None:
            raise ValueError(
                "batch_norm and time_steps exclude each other: train with batch_norm first, then start from its "
                "weights with time_steps and without batch_norm"
            )
        if self.psp_persistence_rise is not None and self.spiking_neuron.psp_persistence == 0:
            raise ValueError("psp_persistence_rise needs a psp_persistence above 0 to rise to")
        if self.psp_persistence_rise is not None and self.compile:
            raise ValueError("psp_persistence_rise and compile exclude each other: each σ would be compiled anew")
        if self.random_resized_crop and self.crop_padding:
            raise ValueError("random_resized_crop and crop_padding exclude each other")
        return self

    def to_yaml(self) -> str:
        """The configuration as YAML: every key but those that say how to treat an existing folder."""
        values = self.model_dump(mode="json", exclude={"resume", "overwrite"})
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


# Keys that may differ between a run and its continuation: they change neither weights nor metrics, but for roundings.
FREE_ON_RESUME = frozenset(
    "resume overwrite output_dir data_placement num_workers profile fuse cuda_graph checkpoint_steps keep_checkpoints "
    "log_steps trackers data_dir evaluation_batch_size max_bad_images "
    "push_to_hub hub_repo_id hub_private hub_license".split()
)
# Keys that runs of earlier versions hold.
RETIRED = {
    "neuron": "an ANN is a network with psp_persistence: 0; start one from the weights of a run that has neuron: ann",
    "pretrain": "one training begins at σ = 0 and ends at its goal; use psp_persistence_rise, and batch_norm",
    "pretrain_epochs": "see psp_persistence_rise",
    "pretrain_lr": "see psp_persistence_rise",
}
# Schedules whose rate at a step does not depend on how many follow: such a run can be made longer.
OPEN_SCHEDULES = ("constant", "milestones")


class ConfigError(ValueError):
    """A configuration that cannot be used: names source, key and rule."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the keys of a YAML file.

    Raises:
        ConfigError: the file is missing, too large, not YAML, or not a mapping.
    """
    try:
        return read_mapping(path)
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist; give an existing file to --config.") from None
    except YamlError as error:
        raise ConfigError(f"configuration file {path} {error}") from error


def make_config(values: dict[str, Any], source: str) -> TrainConfig:
    """Validate values into a configuration.

    Raises:
        ConfigError: with one line for each wrong key, the rule and the value, naming `source`. A retired key is wrong
            if it asks for something.
    """
    try:
        return TrainConfig(**{key: value for key, value in values.items() if key not in RETIRED or _asks(value)})
    except ValidationError as error:
        lines = "\n".join(problem_lines(error, "spiking_neuron", _no_such_key))
        raise ConfigError(f"{source} is not usable:\n{lines}") from None


def differing_keys(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Keys with other values than before, {key: (old, new)} as in YAML, but those that only say where the run is."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    places = ("resume", "overwrite", "output_dir")
    return {key: (before[key], after[key]) for key in before if key not in places and before[key] != after[key]}


def changed_keys(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Of `differing_keys`, those that would change the course of a resumed run."""
    changes = {key: values for key, values in differing_keys(old, new).items() if key not in FREE_ON_RESUME}
    if new.schedule in OPEN_SCHEDULES and new.epochs > old.epochs:
        changes.pop("epochs", None)
    return changes


def without_retired(values: dict[str, Any]) -> dict[str, Any]:
    """The keys of an earlier version's run that still mean something; its checkpoints hold what the others did.

    An ANN's layers were others, and its run does not go on.
    """
    return {key: value for key, value in values.items() if key not in RETIRED or value == "ann"}


def _asks(value: Any) -> bool:
    """Whether the value of a retired key asks for what there is no more."""
    return bool(value) and value != "dft"


def _no_such_key(key: str) -> str:
    import difflib

    if key in RETIRED:
        return f"this key was retired: {RETIRED[key]}"
    close = difflib.get_close_matches(key.replace("-", "_"), (*TrainConfig.model_fields, *PROPERTIES), n=1)
    return "there is no such key" + (f", did you mean {close[0]}?" if close else "")
