"""Passes over the neurons of a layer with batch norm, eagerly: in place, over blocks that fit the cache.

They compute what the formulas of `normalised` compute, which PyTorch's compiler fuses; without a compiler they are
faster than these. Potentials and gradients are rows, [2, neurons, channels], or [1, ...] for A alone at σ = 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ttfs_kernels.fused import precise_dtype
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.rule import aten, cross_, delay_, row_blocks


@dataclass(frozen=True)
class Passes:
    """The passes of one layer over its batch.

    Attributes:
        potentials: [2, neurons, channels], A and Σ w·[x > 0]; at σ = 0 [1, ...].
        sigma: σ, a number or a scalar tensor.
    """

    potentials: Tensor
    sigma: Tensor | float

    def sums(self, estimate: Tensor) -> Tensor:
        """Σ (V − estimate) and Σ (V − estimate)², [2, channels]."""
        total = torch.zeros(2, len(estimate), dtype=precise_dtype(self.potentials.dtype), device=estimate.device)
        for here in row_blocks(self.potentials[0]):
            offset = self._end(here).sub_(estimate)
            total[0].add_(offset.sum(0))
            total[1].add_(offset.square_().sum(0))
        return total

    def fire(
        self, neuron: Neuron, scale: Tensor, shift: Tensor, skip: Tensor | None, skip_weight: Tensor | None
    ) -> Tensor:
        """Activations [neurons, channels]; `scale` is g and `shift` β − g·μ."""
        activations = torch.empty_like(self.potentials[0])
        for here in row_blocks(activations):
            both = self._normalise(here, scale, shift, skip, skip_weight)
            fired = both[0].clamp_(0, 1) if len(both) == 1 else cross_(both, neuron, False).neg_().add_(1)
            activations[here] = fired
        return activations

    def derive(
        self,
        neuron: Neuron,
        grad: Tensor,
        h: Tensor,
        mean: Tensor,
        scale: Tensor,
        shift: Tensor,
        skip: Tensor | None,
        skip_weight: Tensor | None,
    ) -> Tensor:
        """Write the gradients of A' and W' into h (of both at once where h has one row); dβ and dg, [2, channels]."""
        total = torch.zeros(2, len(mean), dtype=precise_dtype(h.dtype), device=h.device)
        for here in row_blocks(self.potentials[0]):
            both = self._normalise(here, scale, shift, skip, skip_weight)
            rows = grad[here].to(both.dtype)
            if len(both) == 1:
                inside = aten.hardtanh_backward(rows, both[0], 0, 1)
                both = inside.add_(both[0], alpha=0).unsqueeze(0)
            else:
                cross_(both, neuron, True)
                both = both[: len(h)].mul_(rows)
            h[:, here] = both
            total[0].add_(both[0].sum(0))
            potentials = self._precise(here)
            potentials[0].sub_(mean)
            total[1].add_(potentials.mul_(both).sum((0, 1)))
        return total

    def spread(self, h: Tensor, scale: Tensor, mean: Tensor, by_mean: Tensor, by_variance: Tensor) -> None:
        """Replace the gradients of A' and W' in h by those of A and of Σ w·[x > 0]; see `normalised`."""
        for here in row_blocks(self.potentials[0]):
            shared = self._end(here).sub_(mean).mul_(by_variance).add_(by_mean)
            rows = h[:, here].to(shared.dtype).sub_(shared).mul_(scale)
            if len(rows) == 2:
                self._persist_(rows[1])
            if rows.dtype != h.dtype:
                h[:, here] = rows

    def _precise(self, here: slice) -> Tensor:
        """A copy of A and W = σ·Σ w·[x > 0] in at least float32."""
        both = self.potentials[:, here].to(precise_dtype(self.potentials.dtype), copy=True)
        if len(both) == 2:
            self._persist_(both[1])
        return both

    def _persist_(self, slope: Tensor) -> None:
        if isinstance(self.sigma, Tensor) or self.sigma != 1.0:
            slope.mul_(self.sigma)

    def _end(self, here: slice) -> Tensor:
        """V = A + W, in memory of its own."""
        A, *W = self._precise(here)
        return A.add_(W[0]) if W else A

    def _normalise(
        self, here: slice, scale: Tensor, shift: Tensor, skip: Tensor | None, skip_weight: Tensor | None
    ) -> Tensor:
        both = self._precise(here).mul_(scale)
        both[0].add_(shift)
        if skip is not None and skip_weight is not None:
            delay_(both, skip[here], skip_weight, self.sigma)
        return both
