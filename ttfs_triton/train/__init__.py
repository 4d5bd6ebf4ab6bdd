"""Training: configuration, data, loop, checkpoints. `main` is the entry point of a recipe, `train` of a program."""

from ttfs_triton.train.config import ConfigError, TrainConfig
from ttfs_triton.train.loop import NonFiniteLossError
from ttfs_triton.train.processes import Interrupted
from ttfs_triton.train.run import DeviceLostError, main, train
from ttfs_triton.train.run_folder import RunFolderError

__all__ = [
    "ConfigError",
    "DeviceLostError",
    "Interrupted",
    "NonFiniteLossError",
    "RunFolderError",
    "TrainConfig",
    "main",
    "train",
]
