"""A recipe's YAML file: keys of a run, those that it shares with other recipes, and presets that replace some of them.

extends: FILE       beside it: keys and presets that are not given here
presets:            by name: keys that `--preset NAME` sets
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttfs_triton.fault_options import FaultOptions
from ttfs_triton.train.config import ConfigError, TrainConfig, make_config, read_yaml

PRETRAINING = "pretrain_ann.yaml"
# How a network is trained; all else of a run (data, augmentation, network, seed, machine) is also its ANN's.
_TRAINING = frozenset(
    "epochs batch_size gradient_accumulation optimizer lr momentum weight_decay schedule warmup milestones "
    "milestone_factor gradient_clip label_smoothing ema_decay initial_gain start_factor end_factor norm_bias_rate "
    "norm_gain_rate readout_rate lookahead".split()
)
_MOST_FILES = 8  # of recipes that extend one another


@dataclass(frozen=True)
class Recipe:
    """A recipe as its file, and those that it extends, have it.

    Attributes:
        path: of the file.
        keys: of a run.
        presets: by name, the keys that each sets.
    """

    path: Path
    keys: Mapping[str, Any]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def values(self, preset: str | None) -> dict[str, Any]:
        """The keys with a preset's in their place; "preset" is among them.

        Raises:
            ConfigError: there is no such preset.
        """
        if preset is None:
            return dict(self.keys)
        if preset not in self.presets:
            has = f"one of {', '.join(self.presets)}" if self.presets else f"left out: {self.path.name} has none"
            raise ConfigError(f"preset must be {has}; got {preset}.")
        return {**self.keys, **self.presets[preset], "preset": preset}

    def help(self) -> str:
        """What each preset sets, for `--help`; empty without presets."""
        lines = [
            f"--preset {name} sets {', '.join(f'{key}: {value}' for key, value in keys.items())}."
            for name, keys in self.presets.items()
        ]
        return "\n".join([*lines, "Flags win over presets."]) if lines else ""


def read_recipe(path: Path) -> Recipe:
    """Read a recipe and what it extends.

    Raises:
        ConfigError: a file cannot be read, presets are no mappings, or the files extend one another without end.
    """
    keys: dict[str, Any] = {}
    presets: dict[str, dict[str, Any]] = {}
    file: Path | None = path
    for _ in range(_MOST_FILES):
        found = read_yaml(file)
        above, named = found.pop("extends", None), found.pop("presets", None) or {}
        if not isinstance(named, dict) or not all(isinstance(values, dict) for values in named.values()):
            raise ConfigError(f"{file}: presets must hold `key: value` lines under each name; got {named!r:.80}.")
        keys = found | keys
        presets = {name: named.get(name, {}) | presets.get(name, {}) for name in {**named, **presets}}
        if above is None:
            return Recipe(path, keys, presets)
        file = file.parent / str(above)
    raise ConfigError(f"{path}: extends must end after {_MOST_FILES} files; got {file} after them.")


def ann_config(recipe: Path, config: TrainConfig) -> TrainConfig:
    """How the ANN is trained that a run with `pretrain` starts from: as pretrain_ann.yaml beside the recipe has it.

    Args:
        recipe: of the run.
        config: of the run, whose preset, data, augmentation, network, seed and machine are also the ANN's.
    Raises:
        ConfigError: that file is not there, or lacks the preset.
    """
    source = recipe.with_name(PRETRAINING)
    trained = make_config(read_recipe(source).values(config.preset), str(source)).model_dump()
    values = config.model_dump() | {key: trained[key] for key in _TRAINING}
    values |= {"neuron": "ann", "readout": None, "dropout": 0.0, "pretrain": False, "psp_persistence_rise": None}
    values |= {"pretrain_epochs": None, "pretrain_lr": None}
    no_grid = dict.fromkeys(("time_steps", "weight_bits", "state_bits", "grid_chip"))
    values |= no_grid | dict.fromkeys(FaultOptions.model_fields, 0.0)
    values |= {"output_dir": None, "resume": False, "overwrite": False, "push_to_hub": False, "hub_repo_id": None}
    values |= {"target_sparsity": None, "target_operations": None, "target_energy": None}
    if config.pretrain_epochs is not None:
        values["epochs"] = config.pretrain_epochs
    if config.pretrain_lr is not None:
        values["lr"] = config.pretrain_lr
    return make_config(values, str(source))
