"""Training: configuration, data, loop, checkpoints. `main` is the entry point of a recipe, `Trainer` of a program."""

from ttfs_triton.train.build import RunData
from ttfs_triton.train.callback import Callback
from ttfs_triton.train.config import ConfigError, TrainConfig
from ttfs_triton.train.loop import NonFiniteLossError
from ttfs_triton.train.processes import Interrupted
from ttfs_triton.train.run import DeviceLostError, main, train
from ttfs_triton.train.run_folder import RunFolderError
from ttfs_triton.train.trainer import Trainer, run_data

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
