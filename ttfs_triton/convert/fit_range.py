"""Scale an ANN with plain ReLU so that its activations fit into [0, 1], where a spike time can say them.

Diehl et al., "Fast-classifying, high-accuracy spiking deep networks through weight and threshold balancing", 2015, by
channel and with a percentile in place of the maximum as Rueckauer et al., "Conversion of continuous-valued deep
networks to efficient event-driven networks for image classification", 2017.
"""

import dataclasses

import torch
from einops import rearrange
from torch import Tensor, nn

from ttfs_triton.convert.checkpoint import ConversionError
from ttfs_triton.convert.conversion import Converted
from ttfs_triton.convert.fold import FoldedANN


@torch.no_grad()
def fit_range(
    converted: Converted,
    images: Tensor,
    *,
    percentile: float = 99.9,
    batch_size: int = 64,
    samples: int = 65536,
    seed: int = 0,
) -> Converted:
    """Divide each channel's weights by what its activations reach, multiply the weights that read it by the same.

    A plain ReLU computes the same afterwards. The clamp cuts what lies above the percentile.

    Args:
        converted: as `convert` gave; its network's weights are changed in place. Left alone if already clamped.
        images: [N, in_channels, height, width], as the networks read them; 256 are enough.
        percentile: of a channel's activations over positions and images, zeros included, in (0, 100].
        batch_size: images that run at once.
        samples: activations of a channel that decide, drawn among all.
        seed: of that draw.
    Returns:
        The network, and the ANN scaled and clamped to [0, 1].
    Raises:
        ConversionError: percentile out of range, or no images.
    """
    if not 0 < percentile <= 100:
        raise ConversionError(f"fit_range: percentile must be in (0, 100]; got {percentile}.")
    if len(images) == 0:
        raise ConversionError("fit_range: images must hold at least one image; got none.")
    ann = converted.ann
    if ann.bound is not None:
        return converted
    reached = _reached(ann, images, percentile / 100, batch_size, samples, seed)
    tensors = _rescaled(ann, reached)
    network = converted.network
    state = {(name if name.startswith("readout.") else f"features.{name}"): tensor for name, tensor in tensors.items()}
    if not network.config.bias:
        state = {name: tensor for name, tensor in state.items() if not name.endswith(".bias")}
    network.load_state_dict(state)
    # Its buffers are made on the CPU.
    return dataclasses.replace(converted, ann=FoldedANN(ann.config, tensors, bound=1.0).to(ann.mean.device))


def rows_of(activations: Tensor) -> Tensor:
    """[N, C, height, width] or [N, C] as [rows, C]."""
    return rearrange(activations, "n c h w -> (n h w) c") if activations.dim() == 4 else activations


def _reached(
    ann: FoldedANN, images: Tensor, quantile: float, batch_size: int, samples: int, seed: int
) -> dict[str, Tensor]:
    """[C] of each hidden layer: the quantile of its activations, 1 for channels that are never active."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {}
    share = batch_size / len(images)
    for batch in images.split(batch_size):
        for name, activations in ann.hidden(batch).items():
            rows = rows_of(activations)
            kept = torch.randperm(len(rows), generator=generator)[: max(1, round(samples * share))].to(rows.device)
            found.setdefault(name, []).append(rows[kept])
    reached = {}
    for name, parts in found.items():
        ordered = torch.cat(parts).sort(dim=0).values
        value = ordered[min(len(ordered) - 1, round(quantile * (len(ordered) - 1)))]
        # A channel that is active in less than the percentile leaves out reaches its maximum.
        value = torch.where(value > 0, value, ordered[-1])
        reached[name] = torch.where(value > 0, value, torch.ones_like(value))
    return reached


def _rescaled(ann: FoldedANN, reached: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the scaled network, by the names of `FoldedANN`."""
    tensors: dict[str, Tensor] = {}
    before: Tensor | None = None
    for name, layer in ann.layers.items():
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert not hasattr(layer, "skip_weight")  # what has one is ours, and clamped
        weight, bias = layer.weight.clone(), layer.bias
        assert bias is not None  # as in every layer of FoldedANN
        if before is not None:
            inputs = before.repeat_interleave(weight.shape[1] // len(before))  # a flattened map, channel by channel
            weight *= inputs.view(1, -1, *[1] * (weight.dim() - 2))
        after = reached.get(name)
        if after is not None:
            weight /= after.view(-1, *[1] * (weight.dim() - 1))
            bias = bias / after
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, bias
        before = after
    return tensors
