"""Whether a grid's registers hold the thresholds that potentials are compared with."""

import math

from torch import nn

from ttfs_triton.nn.integers import quantise_weight
from ttfs_triton.nn.statistics import short_names
from ttfs_triton.nn.weighted import WeightedLayer


def check_registers(model: nn.Module) -> None:
    """Raise ValueError unless every layer's firing threshold is a potential that its registers hold.

    A threshold is T / unit integers high: more steps and finer weights need more bits. Units that training makes finer
    later on are kept coarse enough.

    Args:
        model: of layers on a grid; layers without one hold everything.
    """
    named = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, WeightedLayer)]
    for short, (_, layer) in zip(short_names([name for name, _ in named]), named, strict=True):
        grid = layer.grid
        if grid is None or grid.register is None or layer.kind == "analog":
            continue
        unit = quantise_weight(layer.effective_weight(), grid.weight_bits, per_channel=grid.per_channel).unit
        if layer.log2_unit is not None:
            unit = layer.log2_unit.detach().double().exp2()
        height = math.ceil(grid.time_steps * layer.threshold_height / float(unit.min()))
        if height > grid.register:
            raise ValueError(
                f"Grid: state_bits must hold every layer's threshold, which is {height:,} integers high in {short} at "
                f"{grid.text()}; got {grid.state_bits}, which hold {grid.register:,}. Use at least "
                f"{height.bit_length() + 1} state_bits, or fewer time_steps or weight_bits."
            )
