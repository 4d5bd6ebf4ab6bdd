"""Weight standardisation: zero mean and a learned norm over each neuron's fan-in; it folds into plain weights."""

from torch import Tensor, nn

from ttfs_kernels import standardise_weights


def standardise_weight(weight: Tensor, weight_gain: Tensor) -> Tensor:
    """Centre the weights of every output channel, scale them to unit norm and multiply by the channel's gain.

    `ŵ = weight_gain[c] · (w − mean) / ‖w − mean‖`, mean and norm over the fan-in. A network standardises all its
    layers at once, see `ttfs_triton.nn.models.effective_weights`.

    Args:
        weight: [C_out, ...], at least two weights per output channel; contiguous or channels last, which is kept.
        weight_gain: [C_out], norm of the resulting weights, in threshold heights.
    Returns:
        The standardised weights, shape, dtype and memory format of `weight`. Channels with constant weights give 0.
    Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019.
    """
    return standardise_weights([weight], [weight_gain])[0]


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
