"""What a layer with synapses knows of the chip that it computes for: its grid, and its faults."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ttfs_triton.nn.faults import Faults, spikes_in_training, weight_factors
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.integers import SMALLEST_GRID_UNIT, fitting_unit
from ttfs_triton.nn.statistics import LayerKind


class ChipLayer(nn.Module):
    """Base of `WeightedLayer`.

    Attributes:
        grid: of the chip that the layer computes for, or None (default); see `put_on_grid`.
        faults: of chips that the layer is trained for, or None (default); they happen in training mode alone.
        log2_unit: Parameter [C_out] or [1], logarithm of the weights' units on that grid, in threshold heights; None
            without a grid, or where weights are not rounded.
    """

    kind: ClassVar[LayerKind] = "spiking"
    weight: nn.Parameter
    log2_unit: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.grid: Grid | None = None
        self.faults: Faults | None = None
        self.register_parameter("log2_unit", None)

    def effective_weight(self) -> Tensor:
        """Weights of the synapses."""
        raise NotImplementedError

    def fold_batch_norm(self) -> None:
        """Make batch norm part of the weights."""
        raise NotImplementedError

    def record(self, activations: Tensor) -> Tensor:
        """Count spikes, and hand them on."""
        raise NotImplementedError

    def put_on_grid(self, grid: Grid | None) -> None:
        """Compute as a chip does from now on, or no longer; units are chosen that fit the present weights best.

        Batch norm is folded first.
        """
        if grid is not None:
            self.fold_batch_norm()
        self.grid, self.log2_unit = grid, None
        if grid is None or grid.weight_bits is None:
            return
        weight = self.effective_weight().detach()
        unit = weight.new_zeros(len(weight), dtype=torch.float64)
        if not weight.is_meta:
            unit = fitting_unit(weight, grid.weight_bits, per_channel=grid.per_channel)
        logarithm = unit.clamp_min(SMALLEST_GRID_UNIT).log2()
        self.log2_unit = nn.Parameter((logarithm if grid.per_channel else logarithm[:1]).to(self.weight.dtype))

    def unit_on_grid(self, bits: int | None, per_channel: bool) -> Tensor | None:
        """Units [C_out] of weights with so many bits, float64, in threshold heights; None where the layer has none."""
        grid = self.grid
        if self.log2_unit is None or grid is None or (grid.weight_bits, grid.per_channel) != (bits, per_channel):
            return None
        # Registers hold the threshold, T / unit integers high.
        smallest = 0.0 if grid.register is None else grid.time_steps * self.threshold_height / grid.register
        unit = self.log2_unit.detach().double().exp2().clamp_min(max(SMALLEST_GRID_UNIT, smallest))
        return unit.expand(len(self.weight))

    def runs_on_grid(self, x: Tensor) -> bool:
        """Whether inputs meet integers: on a grid, but not where nothing but shapes is computed."""
        return self.grid is not None and not x.is_meta

    @property
    def common_potential(self) -> float:
        """At which all of its neurons start, besides their own, in threshold heights."""
        return 0.0

    @property
    def threshold_height(self) -> float:
        """Of the firing threshold at the window's start, in threshold heights of hidden neurons."""
        return 1.0

    def factors_in_training(self, weight: Tensor) -> Tensor | None:
        """What the weights of this pass are off by, shape of `weight`; None if they are not."""
        if not self.training or self.faults is None or not self.faults.weight_noise:
            return None
        return weight_factors(weight, self.faults.weight_noise)

    def in_training(self, weight: Tensor) -> Tensor:
        """Weights of this pass: off by what `faults` say while training, or as they are."""
        factors = self.factors_in_training(weight)
        return weight if factors is None else weight * factors.to(weight.dtype)

    def emit(self, activations: Tensor) -> Tensor:
        """Hand on spikes: with `faults`, in training, those that are left of them; counted if they are to be."""
        if self.training and self.faults:
            activations = spikes_in_training(activations, self.faults, self.grid)
        return self.record(activations)
