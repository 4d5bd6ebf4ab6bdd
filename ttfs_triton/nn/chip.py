"""Preparing a network for a chip: put it on the chip's grid, train it for faults, check the registers' width."""

import math

from torch import Tensor, nn

from ttfs_triton.nn.coding import LatencyEncoder
from ttfs_triton.nn.faults import Faults
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.integers import largest_integer, quantise_weight
from ttfs_triton.nn.statistics import short_names
from ttfs_triton.nn.weighted import WeightedLayer


def put_on_grid(model: nn.Module, grid: Grid | None) -> None:
    """Make every layer of a network, the encoder included, compute on a chip's grid, or in real numbers.

    Args:
        model: network of `ttfs_triton.nn` layers, changed in place. For a `TTFSNetwork` call its own method, which
            also updates the configuration.
        grid: the chip's grid; None: real numbers again.
    """
    for module in model.modules():
        if isinstance(module, WeightedLayer | LatencyEncoder):
            module.put_on_grid(grid)


def train_for(model: nn.Module, faults: Faults | None) -> None:
    """Simulate chip faults in every layer of a network, the encoder included, in training mode; None: no faults."""
    for module in model.modules():
        if isinstance(module, WeightedLayer | LatencyEncoder):
            module.faults = faults


def check_registers(model: nn.Module) -> None:
    """Raise ValueError if the registers of a layer on a grid are too small for its threshold, T / unit integers high.

    More time steps and finer weight units need more bits. Training keeps units coarse enough.
    """
    named = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, WeightedLayer)]
    for short, (_, layer) in zip(short_names([name for name, _ in named]), named, strict=True):
        grid = layer.grid
        if grid is None or grid.state_bits is None or layer.kind == "analog":
            continue
        unit = quantise_weight(layer.effective_weight(), grid.weight_bits, per_channel=grid.per_channel).unit
        if layer.log2_unit is not None:
            unit = layer.log2_unit.detach().double().exp2()
        check_register(layer, unit, grid.time_steps, grid.state_bits, "Grid", f"{short} at {grid.text()}")


def check_register(layer: WeightedLayer, unit: Tensor, steps: int, bits: int, caller: str, where: str) -> None:
    """Raise ValueError, naming `caller` and `where`, if registers of `bits` bits are too small for a threshold."""
    # Training clamps a unit where the threshold just fits; the division here may round it up.
    height = math.ceil(steps * layer.threshold_height / float(unit.min()) * (1 - 1e-9))
    register = largest_integer(bits)
    if height > register:
        raise ValueError(
            f"{caller}: state_bits must hold every layer's threshold, which is {height:,} integers high in {where}; "
            f"got {bits}, which hold {register:,}. Use at least {height.bit_length() + 1} state_bits, or fewer "
            "time_steps or weight_bits."
        )
