"""A recipe's YAML file: keys of a run, those that it shares with other recipes, and presets that replace some of them.

extends: FILE       beside it: keys and presets that are not given here
presets:            by name: keys that `--preset NAME` sets
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttfs_triton.train.config import ConfigError, read_yaml

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
