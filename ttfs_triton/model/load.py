"""A trained model for a command, whose user may name the code that builds its network."""

from __future__ import annotations

from functools import partial

from torch import nn

from ttfs_triton.model.builder import build_network_of
from ttfs_triton.model.files import described
from ttfs_triton.model.locate import ModelFiles
from ttfs_triton.model.model import TTFSModel


def load_model(files: ModelFiles, network: str | nn.Module | None = None) -> TTFSModel:
    """A trained model of found files, for a command.

    Args:
        files: of the model.
        network: or "file.py:function", as the user gave it, that builds it; None where the files say how.
    Raises:
        LoadError: as `TTFSModel.from_files`.
        ValueError: as `build_network_of`.
    """
    if not isinstance(network, str):
        return TTFSModel.from_files(files, network)
    known = described(files.config, files.weights).network
    build = partial(
        build_network_of,
        network,
        in_channels=known.in_channels,
        image_size=known.image_size,
        classes=known.classes,
    )
    return TTFSModel.from_files(files, build)
