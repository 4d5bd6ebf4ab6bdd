"""Networks for a chip: on its grid, or trained for its faults."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from ttfs_triton.nn.coding import LatencyEncoder
from ttfs_triton.nn.faults import Faults
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.weighted import WeightedLayer


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Compute in the types that tensors have, inside the `with` block."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def put_on_grid(model: nn.Module, grid: Grid | None) -> None:
    """Let every layer of a module tree, its encoder included, compute on a chip's grid, or on none.

    Args:
        model: of layers of `ttfs_triton.nn`; a `TTFSNetwork` notes it in its configuration by its own method.
        grid: None takes it off.
    """
    for module in model.modules():
        if isinstance(module, WeightedLayer | LatencyEncoder):
            module.put_on_grid(grid)


def train_for(model: nn.Module, faults: Faults | None) -> None:
    """Let faults happen in every layer of a module tree, its encoder included, in training mode; None: no longer."""
    for module in model.modules():
        if isinstance(module, WeightedLayer | LatencyEncoder):
            module.faults = faults
