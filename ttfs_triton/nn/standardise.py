"""Weight standardisation: zero mean and a learned norm over each neuron's fan-in; it folds into plain weights."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_EPSILON = 1e-12  # added to the squared norm of the centred weights: a constant filter gives zeros, not nan


def standardise_weight(weight: Tensor, weight_gain: Tensor) -> Tensor:
    """Centre the weights of every output channel, scale them to unit norm and multiply by the channel's gain.

    `ŵ = weight_gain[c] · (w − mean) / ‖w − mean‖`, mean and norm over the fan-in. One fused normalisation: weights
    are read and written once forward.

    Args:
        weight: [C_out, ...], at least two weights per output channel; contiguous or channels last, which is kept.
        weight_gain: [C_out], norm of the resulting weights, in threshold heights.
    Returns:
        The standardised weights, shape, dtype and memory format of `weight`. Channels with constant weights give 0.
    Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019.
    """
    channels_last = weight.dim() == 4 and not weight.is_contiguous()
    flat = rearrange(weight, "k c r s -> k (r s c)") if channels_last else weight.flatten(1)
    fan_in = flat.shape[1]
    # Batch normalisation over a "batch" of one computes exactly this, in one kernel: per channel (w − mean) / std,
    # and std = norm / √fan_in.
    flat = F.batch_norm(
        flat[None], None, None, weight=weight_gain * fan_in**-0.5, training=True, eps=_EPSILON / fan_in
    ).squeeze(0)
    if channels_last:
        return rearrange(flat, "k (r s c) -> k c r s", r=weight.shape[2], s=weight.shape[3])
    return flat.view(weight.shape)


def fold_weight_standardisation(model: nn.Module) -> nn.Module:
    """Replace standardised weights by the plain weights they stand for, in place, in every layer of a module tree.

    Outputs stay the same; `state_dict` keeps `weight` and `bias` only, and the gains are no longer trained. Layers
    without standardisation are left alone, so folding twice is harmless.

    Args:
        model: a layer or network of `ttfs_triton.nn`, or any module that contains some.
    Returns:
        `model`.
    """
    for module in model.modules():
        fold = getattr(module, "fold_standardisation", None)
        if fold is not None:
            fold()
    return model
