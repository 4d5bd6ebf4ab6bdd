"""The configuration of a run: from a recipe's YAML, its preset, `--config FILE` and flags; later ones win.

A recipe's YAML file holds keys of a run, and three more:

extends: FILE       a recipe in the same folder; its keys and presets hold unless this file gives them
presets:            preset name → keys that `--preset NAME` sets
about: TEXT         what is trained, and how, for `--help`; a preset may have one, too
"""

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model, model_validator

from ttfs_triton.command_line import RECIPES, parse_options, problem_lines, recipe
from ttfs_triton.option_rules import broken_rules
from ttfs_triton.training_options import FREE_ON_RESUME, PROPERTIES, TrainConfig
from ttfs_triton.untrusted_files import YamlError, read_mapping

_RULES = TrainConfig.__pydantic_decorators__.model_validators.items()
_OFF: Any = {key: model_validator(mode="after")(lambda keys: keys) for key, rule in _RULES if rule.info.mode == "after"}
_Keys = create_model("_Keys", __base__=TrainConfig, __validators__=_OFF)  # checks keys, but no rules between them
_RETIRED = ("trained_as", "grid_chip", "profile")  # keys of older runs, without effect on their course
_MOST_FILES = 8  # longest chain of recipes that extend one another


class ConfigError(ValueError):
    """The configuration cannot be used; the message names source, key and rule."""


class FileOptions(BaseModel):
    """The configuration file."""

    config: Path | None = None
    """YAML file whose keys replace the recipe's; flags replace both."""


def parse_config(recipe: Path, description: str, arguments: Sequence[str]) -> TrainConfig:
    """The configuration of a run, from its recipe, preset, configuration file and command line; see `main`.

    A ConfigError says which file or combination of keys is unusable; a malformed flag and `--help` end the program.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--preset")
    first.add_argument("--output-dir", "--output_dir", type=Path)
    first.add_argument("--resume", action="store_true")
    first.add_argument("--network")
    peeked, _ = first.parse_known_args(arguments)

    written = read_recipe(recipe)
    mine = {} if peeked.config is None else read_yaml(peeked.config)
    values = written.values(peeked.preset or mine.get("preset")) | mine
    source = str(peeked.config or recipe)
    folder = peeked.output_dir or values.get("output_dir")
    saved = Path(str(folder)) / "config.yaml" if peeked.resume and folder else None
    if saved is not None and os.path.isfile(saved):  # a name may be too long
        # `check_same_run` refuses keys and flags that contradict the run's checkpoints.
        values, source = read_yaml(saved) | mine, str(peeked.config or saved)
    check_typed_network(values.pop("network", None), peeked.network, source)
    base = make_config(values, source, _Keys)
    given = parse_options(
        *reversed(TrainConfig.__bases__),
        FileOptions,
        defaults={**dict(base), "config": peeked.config},
        arguments=arguments,
        description="\n\n".join(filter(None, (description, written.help()))),
    )
    del given["config"]
    config = make_config(given, f"{source} with the command line")
    flags = {*differing_keys(base, config)}
    if config.network is not None:  # which may have other values than the defaults
        flags |= {arg.split("=")[0][2:].replace("-", "_").removeprefix("no_") for arg in arguments if arg[:2] == "--"}
    for message in broken_rules(config, flags):
        raise ConfigError(f"{message}.")
    return config


def check_typed_network(named: object, typed: str | None, source: str) -> None:
    """Raise ConfigError if a file names a network and the command line none: code that only a file names is never run.

    A command that reads a file of keys passes the file's `network` here, and builds only the typed network.
    """
    if named is not None and typed is None:
        raise ConfigError(
            f"{source}: network must be typed on the command line, since code that only a file names is not run; got "
            f"{named!r:.200} in the file. Add --network FILE.py:FUNCTION."
        )


@dataclass(frozen=True)
class Recipe:
    """A recipe and those that it extends: keys, presets (name → keys), texts about presets ("" stands for none)."""

    path: Path
    keys: Mapping[str, Any]
    presets: Mapping[str, Mapping[str, Any]]
    about: Mapping[str, str]

    def values(self, preset: str | None) -> dict[str, Any]:
        """The recipe's keys, overridden by those of a preset; ConfigError if there is no such preset."""
        if preset is None:
            return dict(self.keys)
        if preset not in self.presets:
            has = f"one of {', '.join(self.presets)}" if self.presets else f"left out: {self.path.name} has none"
            raise ConfigError(f"preset must be {has}; got {preset}.")
        return {**self.keys, **self.presets[preset], "preset": preset}

    def help(self) -> str:
        """Text about the presets for `--help`; empty without presets."""
        lines = [f"Without a preset: {self.about['']}"] if self.about[""] else []
        for name, keys in self.presets.items():
            said = f"{name}: {self.about[name]} It" if self.about[name] else name
            lines.append(f"--preset {said} sets {', '.join(f'{key}: {value}' for key, value in keys.items())}.")
        return "\n".join([*lines, "Flags win over presets."]) if self.presets else ""


def read_recipe(path: Path) -> Recipe:
    """Read a recipe and the recipes that it extends."""
    keys: dict[str, Any] = {}
    presets: dict[str, dict[str, Any]] = {}
    file: Path | None = path
    for _ in range(_MOST_FILES):
        values = read_yaml(file)
        above, named = values.pop("extends", None), values.pop("presets", None) or {}
        if not isinstance(named, dict) or not all(isinstance(preset, dict) for preset in named.values()):
            raise ConfigError(f"{file}: presets must hold `key: value` lines under every name; got {named!r:.80}.")
        keys = values | keys
        presets = {name: named.get(name, {}) | presets.get(name, {}) for name in {**named, **presets}}
        if above is None:
            about = {name: str(values.pop("about", "")) for name, values in (("", keys), *presets.items())}
            return Recipe(path, keys, presets, about)
        file = file.parent / str(above)
    raise ConfigError(f"{path}: extends must end after {_MOST_FILES} files; got {file} after them.")


def recipe_config(name: str, preset: str | None = None, **changes: Any) -> TrainConfig:
    """The configuration of a recipe that comes with the package, for `train`.

    Args:
        name: such as "cifarnet-cifar10"; `ttfs --help` lists all.
        preset: as `--preset`. Default: none.
        **changes: keys of the configuration, which replace the recipe's.
    Raises:
        ConfigError: there is no such recipe, preset or key, or a value is out of range.
    Example:
        >>> recipe_config("cifarnet-cifar10", "rel_psp", epochs=2).spiking_neuron.psp_persistence
        1.0
    """
    if not (path := recipe(name)).is_file():
        names = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        raise ConfigError(f"recipe must be one of {', '.join(names)}; got {name}.")
    return make_config(read_recipe(path).values(preset) | changes, f"recipe_config: {name}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the keys of a YAML file."""
    try:
        return read_mapping(path)
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist; give an existing file to --config.") from None
    except YamlError as error:
        raise ConfigError(f"configuration file {path} {error}") from error


def make_config(values: dict[str, Any], source: str, kind: type[TrainConfig] = TrainConfig) -> TrainConfig:
    """A configuration from values; a ConfigError names their source, and the wrong keys with rule and value."""
    values = {key: value for key, value in values.items() if key not in _RETIRED}
    try:
        return kind(**values)
    except ValidationError as error:
        lines = "\n".join(problem_lines(error, "spiking_neuron", _no_such_key))
        raise ConfigError(f"{source} is not usable:\n{lines}") from None


def differing_keys(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Keys with different values, {key: (old, new)} as in YAML, except resume, overwrite and output_dir."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    places = ("resume", "overwrite", "output_dir")
    return {key: (before[key], after[key]) for key in before if key not in places and before[key] != after[key]}


def changed_keys(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The differing keys, {key: (old, new)}, that would change the course of a resumed run."""
    changes = {key: values for key, values in differing_keys(old, new).items() if key not in FREE_ON_RESUME}
    # A run can be made longer if nothing depends on the share of its steps that are done.
    by_share = new.psp_persistence_rise is not None or new.lookahead or new.target is not None
    if new.schedule in ("constant", "milestones") and not by_share and new.epochs > old.epochs:
        changes.pop("epochs", None)
    return changes


def _no_such_key(key: str) -> str:
    close = difflib.get_close_matches(key.replace("-", "_"), (*TrainConfig.model_fields, *PROPERTIES), n=1)
    return "there is no such key" + (f", did you mean {close[0]}?" if close else "")
