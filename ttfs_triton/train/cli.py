"""From a recipe's YAML, its preset, `--config FILE` and flags to a validated configuration; later ones win."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ttfs_triton.command_line import OptionsError, parse_options, program
from ttfs_triton.train.config import ConfigError, TrainConfig, changed_keys, make_config, read_yaml, without_retired
from ttfs_triton.train.recipe import read_recipe


def parse_config(recipe: Path, description: str, arguments: Sequence[str] | None = None) -> TrainConfig:
    """Configuration of a recipe.

    Args:
        recipe: the recipe's own YAML file.
        description: shown by `--help`.
        arguments: command line without the program's name. Default: sys.argv[1:].
    Raises:
        ConfigError: a file or a combination of keys is unusable.
        SystemExit: a flag is unknown or malformed (message on standard error), or `--help` was asked for.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--preset")
    first.add_argument("--output-dir", type=Path)
    first.add_argument("--resume", action="store_true")
    first.add_argument("--network")
    known, _ = first.parse_known_args(arguments)

    written = read_recipe(recipe)
    mine = {} if known.config is None else read_yaml(known.config)
    values = written.values(known.preset or mine.get("preset")) | mine
    source = str(known.config or recipe)
    saved = known.output_dir / "config.yaml" if known.resume and known.output_dir else None
    if saved is not None and saved.is_file():
        # A run goes on with what it was started with; flags may repeat it, not change it.
        values, source = without_retired(read_yaml(saved)), str(saved)
        if values.get("network") is not None and known.network is None:
            raise ConfigError(
                f"--resume: the run in {known.output_dir} is of a network that {values['network']} built, and no code "
                "is run that only a file names. Add --network FILE.py:FUNCTION."
            )
    base = make_config(values, source)

    try:
        given = parse_options(
            _WithConfigFlag,
            default=_WithConfigFlag.model_validate(base.model_dump() | {"config": known.config}),
            arguments=arguments,
            description="\n\n".join(filter(None, (description, written.help()))),
            prog=program(),
        )
    except OptionsError as error:
        raise ConfigError(str(error)) from None
    config = make_config(given.model_dump(exclude={"config"}), "the command line")
    if saved is not None and saved.is_file():
        refuse_changes(base, config, saved)
    return config


def refuse_changes(old: TrainConfig, new: TrainConfig, source: Path) -> None:
    """Raise ConfigError if a resumed run would take another course than the one it was started on."""
    changes = changed_keys(old, new)
    if changes:
        lines = "\n".join(f"  {key}: {before!r} → {after!r}" for key, (before, after) in changes.items())
        raise ConfigError(
            f"--resume goes on with the configuration in {source}; these keys differ:\n{lines}\n"
            "Leave those flags away, or start a new run with another --output-dir."
        )


class _WithConfigFlag(TrainConfig):
    config: Path | None = None
    """YAML file whose keys replace the recipe's; flags replace both."""
