"""Folding of batch norm and weight standardisation into plain weights and initial potentials."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ttfs_kernels import standardise_weight
from ttfs_triton.nn.on_chip import RoundedLayer
from ttfs_triton.nn.weighted import WeightedLayer

STATISTICS_BATCH = 500
"""Batch size, in images, in which `unfold_batch_norm` collects the statistics of potentials."""


@dataclass(frozen=True)
class BatchNorm:
    """Batch norm in evaluation: y = (x − mean) / √(var + epsilon) · weight + bias, per channel.

    Attributes:
        mean, var: [C], running statistics.
        weight, bias: [C], or None for 1 and 0.
        epsilon: not part of a state dict; PyTorch's default is 1e-5.
    """

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    epsilon: float = 1e-5

    def scale(self) -> Tensor:
        """[C] float64, the factor on the layer's output."""
        scale = (self.var.double() + self.epsilon).rsqrt()
        return scale if self.weight is None else scale * self.weight.double()

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weight and initial potential of a layer with this batch norm folded in.

        Args:
            weight: weight of the convolution or fully connected layer, [C, ...].
            bias: its bias, [C], or None.
        Returns:
            (weight, bias), shapes as above, float64.
        """
        scale = self.scale()
        centred = -self.mean.double() if bias is None else bias.double() - self.mean.double()
        shift = 0.0 if self.bias is None else self.bias.double()
        return weight.double() * scale.view(-1, *[1] * (weight.dim() - 1)), centred * scale + shift


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


def has_batch_norm(names: Iterable[str]) -> bool:
    """Whether the names in a state dict belong to a network with batch norm."""
    return any(".batch_norm." in name for name in names)


@torch.no_grad()
def fold_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state dict with batch norm and weight standardisation folded, also where one layer has both.

    Args:
        tensors: the state dict, of one floating dtype, on any device; without batch norm it is returned unchanged.
    Raises:
        KeyError: a batch norm lacks one of its tensors.
        RuntimeError: the shapes of a layer and its batch norm do not fit.
    """
    if not has_batch_norm(tensors):
        return dict(tensors)
    folded = dict(tensors)
    for name, weight in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind != "weight" or layer.endswith(".batch_norm"):
            continue
        gain, bias = (folded.pop(f"{layer}.{part}", None) for part in ("weight_gain", "bias"))
        plain = weight if gain is None else standardise_weight(weight, gain)
        if f"{layer}.batch_norm.running_mean" in tensors:
            parts = ("running_mean", "running_var", "weight", "bias", "num_batches_tracked")
            norm: Any = [folded.pop(f"{layer}.batch_norm.{part}") for part in parts]
            plain, bias = BatchNorm(*norm[:-1]).fold(plain, bias)
        bias = weight.new_zeros(len(weight)) if bias is None else bias.to(weight.dtype)
        folded |= {name: plain.to(weight.dtype), f"{layer}.bias": bias}
    return folded


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
