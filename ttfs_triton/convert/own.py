"""Networks of this package as a source: their config.json, and batch norm and standardised weights folded."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ttfs_triton.convert.ann import batch_norm_of
from ttfs_triton.convert.checkpoint import ConversionError
from ttfs_triton.convert.layouts import TrainedAs, check_tensors
from ttfs_triton.convert.report import BATCH_NORM, LayerEntry
from ttfs_triton.convert.source import Weights
from ttfs_triton.model.files import network_tensors
from ttfs_triton.nn import NetworkConfig, standardise_weight
from ttfs_triton.nn.folding import BatchNorm

_OURS = re.compile(r"(?:features\.(?:conv|fc)\d+|readout)\..+")


def is_own(tensors: Mapping[str, Tensor]) -> bool:
    """Whether names are those of a `TTFSNetwork`."""
    return any(_OURS.fullmatch(key) for key in tensors)


def own_config(
    weights: Weights,
    config: NetworkConfig | None,
    image_size: tuple[int, int] | None,
    trained_as: TrainedAs | None,
) -> NetworkConfig:
    """What the config.json beside weights of ours says, or the caller.

    Args:
        weights: the source.
        config, trained_as: see `convert`.
        image_size: (height, width) to convert for, or None.
    Raises:
        ConversionError: neither says it, or something else was asked for.
    """
    description = weights.description()
    own = config if description is None else description.network
    if own is None:
        raise ConversionError(
            f"convert: {weights.name} must have a config.json beside it, as training writes; it has none. "
            "Keep both together."
        )
    if not isinstance(own, NetworkConfig):
        raise ConversionError(
            f"convert: {weights.name} must hold a network of a specification; got one that {own.builder} builds. "
            "Fine-tune it with recipes/train_own.py --weights."
        )
    if image_size not in (None, own.image_size):
        raise ConversionError(
            f"convert: image_size must be {own.image_size}, as {weights.name} was trained; got {image_size}."
        )
    if trained_as is not None:
        raise ConversionError(f"convert: trained_as must be left out for a network of ours; got {trained_as}.")
    return own.replace(grid=None)


def fold_own(
    tensors: Mapping[str, Tensor], config: NetworkConfig, *, keep_standardisation: bool, epsilon: float
) -> tuple[dict[str, Tensor], list[LayerEntry]]:
    """Tensors of the network without batch norm, and without standardised weights unless they are kept.

    Args:
        tensors: of the source; of an ANN of an older version, a layer may have both.
        config: of the source.
        keep_standardisation: keep gains beside the weights that are standardised.
        epsilon: of batch norms.
    Returns:
        Tensors by name, and where each layer's are from.
    Raises:
        ConversionError: tensors are missing, superfluous or of another shape; by name.
    """
    state, entries = {key: value for key, value in tensors.items() if ".batch_norm." not in key}, []
    for path in [key.removesuffix(".weight") for key in tensors if key.endswith(".weight")]:
        if path.endswith(".batch_norm"):
            continue
        weight, gain, folded = tensors[f"{path}.weight"], tensors.get(f"{path}.weight_gain"), []
        bias = tensors.get(f"{path}.bias")
        if gain is not None and not keep_standardisation:
            weight, gain = standardise_weight(weight.double(), gain.double()), None
            folded.append("weight standardisation")
        if f"{path}.batch_norm.running_var" in tensors:
            norm = _batch_norm(tensors, f"{path}.batch_norm", len(weight), epsilon)
            scaled, bias = norm.fold(weight, bias)
            # The gain takes the scale as well as the weight would: it multiplies standardised weights.
            weight, gain = (scaled, None) if gain is None else (weight, gain.double() * norm.scale())
            folded.append(BATCH_NORM)
        state.pop(f"{path}.weight_gain", None)
        found = {"weight": weight, "weight_gain": gain, "bias": bias}
        state |= {f"{path}.{kind}": value for kind, value in found.items() if value is not None}
        sources = [key for key in tensors if key.startswith(f"{path}.") and ".batch_norm." not in key]
        sources += [f"{path}.batch_norm.*"] if BATCH_NORM in folded else []
        entries.append(LayerEntry(path.removeprefix("features."), tuple(sources), tuple(folded)))
    _check(state, config.replace(batch_norm=False, weight_standardisation=keep_standardisation, bias=True))
    return state, entries


def _batch_norm(tensors: Mapping[str, Tensor], name: str, channels: int, epsilon: float) -> BatchNorm:
    parts = [tensors.get(f"{name}.{part}") for part in ("running_mean", "running_var", "weight", "bias")]
    mean, variance, weight, bias = parts
    if mean is None or variance is None or any(part is not None and part.shape != (channels,) for part in parts):
        shapes = ["missing" if part is None else list(part.shape) for part in parts]
        raise ConversionError(f"convert: {name} must have statistics of {channels} channels; got {shapes}.")
    return batch_norm_of(name, mean, variance, weight, bias, epsilon)


def _check(state: Mapping[str, Tensor], config: NetworkConfig) -> None:
    """Tensors must be the network's; a bias that a layer lacks is 0."""
    wanted = {key: shape for key, (_, shape) in network_tensors(config).items()}
    wanted = {key: shape for key, shape in wanted.items() if key in state or not key.endswith(".bias")}
    check_tensors(wanted, {key: tuple(tensor.shape) for key, tensor in state.items()}, config.specification)


def draw_readout(classes: int, in_features: int, initial_gain: float, seed: int) -> Tensor:
    """[classes, in_features] weights of a new readout, as `WeightedLayer.reset_parameters` draws them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, in_features, generator=generator) * (initial_gain * (2 / in_features) ** 0.5)
