"""Folding of batch norm and weight standardisation into plain weights and initial potentials."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ttfs_triton.nn.on_chip import RoundedLayer
from ttfs_triton.nn.weighted import WeightedLayer

STATISTICS_BATCH = 500
"""Batch size, in images, in which `unfold_batch_norm` collects the statistics of potentials."""


@torch.no_grad()
def plain_synapses(layer: WeightedLayer) -> tuple[Tensor, Tensor | None]:
    """Weights [C_out, ...] and initial potentials [C_out] or None that a layer computes with in evaluation, float64.

    Standardisation and batch norm are folded in; on a grid they are rounded. Exports, counts and simulations use these.
    """
    weight = layer.effective_weight().detach()
    if layer.grid is not None:
        return RoundedLayer(layer, weight, noisy=False).numbers()
    weight, bias = layer.with_batch_norm(weight.double())
    return weight, None if bias is None else bias.detach().double()


@torch.no_grad()
def plain_skip_weights(layer: WeightedLayer) -> Tensor | None:
    """Weights [C_out] of delayed spikes, rounded if the layer is on a grid; None for a layer without a skip."""
    if layer.grid is not None and layer.skip:
        return RoundedLayer(layer, layer.effective_weight(), noisy=False).skip_weight
    return layer.skip_weights()


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
        fold = getattr(module, "fold_standardisation", None)  # a `TTFSNetwork` updates its configuration
        if fold is not None:
            fold()
    return model


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Replace batch norm by weights and initial potentials in every layer; in evaluation outputs stay the same.

    Args:
        model: a layer or network of `ttfs_triton.nn`, changed in place. For a `TTFSNetwork` call its own method, which
            also updates the configuration.
    Returns:
        `model`.
    """
    for layer in _weighted_layers(model):
        layer.fold_batch_norm()
    return model


@torch.no_grad()
def unfold_batch_norm(network: nn.Module, plain: nn.Module, images: Tensor) -> None:
    """Give a network with batch norm the weights of a plain network, so that training can continue from them.

    Args:
        network: network with batch norm, changed in place. It has the layers of `plain` in the same order, some with
            batch norm; in evaluation it then computes the same as `plain`.
        plain: network without batch norm and weight standardisation.
        images: training images, [N, ...]; the plain network's potentials on them give the running statistics.
    """
    pairs = list(zip(_weighted_layers(network), _weighted_layers(plain), strict=True))
    modes = network.training, plain.training
    network.eval()
    plain.eval()
    hooks, momenta = [], []

    def run_beside(own: WeightedLayer, _: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        own(*arguments, **options)

    for own, other in pairs:
        own.load_state_dict(other.state_dict(), strict=own.batch_norm is None)
        norm: Any = own.batch_norm
        if norm is not None:
            momenta.append((norm, norm.momentum, other.bias))
            norm.reset_running_stats()
            norm.momentum = 0.0
            norm.train()
            hooks.append(other.register_forward_pre_hook(partial(run_beside, own), with_kwargs=True))
    for part in images.split(STATISTICS_BATCH):
        plain(part)
    for hook in hooks:
        hook.remove()
    for norm, momentum, bias in momenta:
        norm.momentum = momentum
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean if bias is None else norm.running_mean + bias)
    network.train(modes[0])
    plain.train(modes[1])


def _weighted_layers(model: nn.Module) -> list[WeightedLayer]:
    return [module for module in model.modules() if isinstance(module, WeightedLayer)]
