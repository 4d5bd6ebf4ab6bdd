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
    """What the config.json beside weights of ours says, or the caller; the tensors are checked against it.

    Args:
        weights: the source.
        config, trained_as: see `convert`.
        image_size: (height, width) to convert for, or None.
    Raises:
        ConversionError: neither says it, something else was asked for, or tensors do not fit.
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
    if trained_as is not None and own.analog != (trained_as == "ann"):
        kind = "an ANN" if own.analog else "a spiking network"
        raise ConversionError(f"convert: trained_as must be left out for {weights.name}, {kind}; got {trained_as}.")
    wanted = {key: shape for key, (_, shape) in network_tensors(own.replace(grid=None)).items()}
    check_tensors(wanted, {key: tuple(tensor.shape) for key, tensor in weights.tensors.items()}, own.specification)
    return own.replace(grid=None)


def fold_own(
    tensors: Mapping[str, Tensor], config: NetworkConfig, *, keep_standardisation: bool, epsilon: float
) -> tuple[dict[str, Tensor], list[LayerEntry]]:
    """Tensors of the network without batch norm, and without standardised weights unless they are kept.

    Args:
        tensors, config: of the source, checked.
        keep_standardisation: keep gains beside the weights that are standardised.
        epsilon: of batch norms.
    Returns:
        Tensors by name, and where each layer's are from.
    """
    state, entries = {}, []
    for path in [key.removesuffix(".weight") for key in network_tensors(config) if key.endswith(".weight")]:
        if path.endswith(".batch_norm"):
            continue
        own = {key.removeprefix(f"{path}."): value for key, value in tensors.items() if key.startswith(f"{path}.")}
        weight, bias, gain = own["weight"], own.get("bias"), own.get("weight_gain")
        folded = []
        if gain is not None and not keep_standardisation:
            weight, gain = standardise_weight(weight.double(), gain.double()), None
            folded.append("weight standardisation")
        if "batch_norm.running_var" in own:
            values = (own.get(f"batch_norm.{key}") for key in ("running_mean", "running_var", "weight", "bias"))
            norm = batch_norm_of(f"{path}.batch_norm", *values, epsilon)  # type: ignore[arg-type]
            scaled, bias = norm.fold(weight, bias)
            # The gain takes the scale as well as the weight would: it multiplies standardised weights.
            weight, gain = (scaled, None) if gain is None else (weight, gain.double() * norm.scale())
            folded.append(BATCH_NORM)
        found = {"weight": weight, "weight_gain": gain, "bias": bias, "skip_weight": own.get("skip_weight")}
        state |= {f"{path}.{kind}": value for kind, value in found.items() if value is not None}
        sources = tuple(f"{path}.{key}" for key in own if not key.startswith("batch_norm."))
        norms = (f"{path}.batch_norm.*",) if "batch_norm.running_var" in own else ()
        entries.append(LayerEntry(path.removeprefix("features."), sources + norms, tuple(folded)))
    return state, entries


def draw_readout(classes: int, in_features: int, initial_gain: float, seed: int) -> Tensor:
    """[classes, in_features] weights of a new readout, as `WeightedLayer.reset_parameters` draws them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, in_features, generator=generator) * (initial_gain * (2 / in_features) ** 0.5)
