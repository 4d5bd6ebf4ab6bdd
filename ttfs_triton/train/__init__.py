"""Training: configuration, data, loop, checkpoints. `main` is the entry point of a recipe, `Trainer` of a program."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ttfs_triton.train.config import ConfigError, TrainConfig, main

if TYPE_CHECKING:
    from ttfs_triton.train.build import RunData
    from ttfs_triton.train.device import Interrupted
    from ttfs_triton.train.loop import Callback, NonFiniteLossError
    from ttfs_triton.train.run import DeviceLostError, Trainer, run_data, train
    from ttfs_triton.train.run_folder import RunFolderError

# What trains is imported when it is first asked for: `--help` does without.
_HOMES = {
    "Callback": "loop",
    "DeviceLostError": "run",
    "Interrupted": "device",
    "NonFiniteLossError": "loop",
    "RunData": "build",
    "RunFolderError": "run_folder",
    "Trainer": "run",
    "run_data": "run",
    "train": "run",
}
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
    "run_data",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ttfs_triton.train.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
