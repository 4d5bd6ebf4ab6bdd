"""The command line of a recipe; the trainer is imported when flags and files have been read."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ttfs_triton.command_line import TRACEBACK, plain_errors
from ttfs_triton.train.config import ConfigError, parse_config


def main(recipe: Path, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Entry point of a recipe: parse, train, exit with a plain message where the user can mend what went wrong.

    Args:
        recipe: the recipe's YAML file.
        description: shown by `--help`.
        arguments: command line without the program's name. Default: sys.argv[1:].
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    traceback = TRACEBACK in arguments
    with plain_errors(ConfigError, traceback=traceback):
        config = parse_config(recipe, description or "", arguments)
    from ttfs_triton.train.run import ERRORS, train

    with plain_errors(*ERRORS, traceback=traceback):
        train(config, name=recipe.stem)
