"""Training: configuration, data, loop, checkpoints. Recipes call `main`; Python programs use `Trainer`."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttfs_triton.command_line import TRACEBACK, plain_errors
from ttfs_triton.train.config import ConfigError, TrainConfig, parse_config, recipe_config

if TYPE_CHECKING:
    from ttfs_triton.train.data import RunData, run_data
    from ttfs_triton.train.device import Interrupted
    from ttfs_triton.train.learner import NonFiniteLossError
    from ttfs_triton.train.loop import Callback
    from ttfs_triton.train.run import DeviceLostError, Trainer, train
    from ttfs_triton.train.run_folder import RunFolderError

__all__ = [
    "Callback",
    "ConfigError",
    "DeviceLostError",
    "Interrupted",
    "NonFiniteLossError",
    "RunData",
    "RunFolderError",
    "TrainConfig",
    "Trainer",
    "main",
    "recipe_config",
    "run_data",
    "train",
]


def main(recipe: Path, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Entry point of a recipe: parse the command line and train. Errors that users can fix have no traceback.

    Args:
        recipe: the recipe's YAML file.
        description: shown by `--help`.
        arguments: command line without the program's name. Default: sys.argv[1:].
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    traceback = TRACEBACK in arguments
    with plain_errors(ConfigError, traceback=traceback):
        config = parse_config(recipe, description or "", arguments)
    from accelerate import PartialState

    from ttfs_triton.train.run import ERRORS, train

    with plain_errors(*ERRORS, traceback=traceback):
        train(config, name=recipe.stem)
        PartialState().destroy_process_group()


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported on first use, so that `--help` does not import PyTorch
        return getattr(import_module("ttfs_triton.train.run"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
