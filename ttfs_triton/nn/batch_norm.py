"""What a layer with batch norm knows of it: batch statistics while training, a plain layer in evaluation."""

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ttfs_kernels import Normalisation, Normalised
from ttfs_triton.nn.chip_layer import ChipLayer


class NormalisedLayer(ChipLayer):
    """Base of `WeightedLayer`.

    Attributes:
        batch_norm: `BatchNorm2d` or `BatchNorm1d`, which holds γ, β and the running statistics, or None. In its
            evaluation mode the layer computes with these, also while it is trained: `layer.batch_norm.eval()`.
        statistics_group: processes that share the statistics of a batch; None: each has its own.
    """

    bias: nn.Parameter | None
    batch_norm: nn.BatchNorm1d | nn.BatchNorm2d | None
    statistics_group: ProcessGroup | None

    def fold_standardisation(self) -> None:
        """Make the standardised weights plain ones."""
        raise NotImplementedError

    @property
    def has_initial_potential(self) -> bool:
        """Whether neurons start from a potential of their own."""
        return self.bias is not None or self.batch_norm is not None

    @property
    def normalises(self) -> bool:
        """Whether potentials are normalised by the statistics of the batch: in the training mode of `batch_norm`."""
        return self.batch_norm is not None and self.batch_norm.training

    def with_batch_norm(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights and initial potentials of evaluation mode, batch norm folded in; without one, as they are.

        Args:
            weight: the effective weight.
        Returns:
            weight, shape of `weight`, and bias [C_out] or None, in the wider of the dtypes of `weight` and batch norm.
        """
        norm = self.batch_norm
        if norm is None:
            return weight, self.bias
        assert norm.running_mean is not None
        assert norm.running_var is not None
        dtype = torch.promote_types(weight.dtype, norm.weight.dtype)
        scale = norm.weight.to(dtype) * (norm.running_var.to(dtype) + norm.eps).rsqrt()
        bias = norm.bias.to(dtype) - scale * norm.running_mean.to(dtype)
        return weight.to(dtype) * scale.view(-1, *(1,) * (weight.dim() - 1)), bias

    def normalisation(self) -> Normalisation:
        """How potentials of this training step are normalised.

        Raises:
            RuntimeError: the layer has no batch norm.
        """
        norm = self.batch_norm
        if norm is None or norm.running_mean is None:
            raise RuntimeError(f"{type(self).__name__}: normalisation must have a batch norm; there is none.")
        return Normalisation(norm.weight, norm.bias, norm.running_mean, norm.eps, self.statistics_group)

    @torch.no_grad()
    def follow(self, found: Normalised) -> Tensor:
        """Let the running statistics follow those of a batch; returns its activations.

        They are the mean of all batches so far, until that is as long a memory as the batch norm's momentum gives them.
        """
        norm = self.batch_norm
        assert norm is not None
        assert norm.momentum is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share = norm.num_batches_tracked.to(norm.weight.dtype).reciprocal().clamp_min(norm.momentum)
        for running, value in ((norm.running_mean, found.mean), (norm.running_var, found.variance)):
            assert running is not None
            running.lerp_(value.to(running.dtype), share)
        return found.activations

    @torch.no_grad()
    def fold_batch_norm(self) -> None:
        """Replace batch norm by plain weights and initial potentials; see the function `fold_batch_norm`."""
        if self.batch_norm is None:
            return
        self.fold_standardisation()
        weight, bias = self.with_batch_norm(self.weight.double())
        assert bias is not None
        self.weight.copy_(weight)
        self.bias, self.batch_norm = nn.Parameter(bias.to(self.weight.dtype)), None
