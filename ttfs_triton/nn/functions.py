"""Functions and methods of tensors as the modules that do the same; and what to use instead, if none may be used."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

REMEDIES = {
    r"avg_?pool|^mean$": "A mean of spike times is no spike: use average=… of the next layer.",
    r"batch_?norm|layer_?norm|group_?norm|instance_?norm": "Use batch_norm=True of the layers, folded after training.",
    r"^r?sub$|^add": "A sum of spike times is no spike time: use layer(x, skip=spikes).",
    r"relu|gelu|silu|elu|sigmoid|tanh|softplus|hardswish|mish": "Leave it out: the neurons are the nonlinearity.",
    r"max_?pool": "Use EarliestSpikePool2d: no dilation.",
    r"interpolate|upsampl": "Use SpikeUpsample2d: nearest neighbour, whole factors.",
    r"conv": "Use DFTConv2d, or AnalogEncoder for the layer that reads pixels.",
    r"linear|matmul|bilinear": "Use DFTLinear, or Readout for the last layer.",
    r"dropout": "Use nn.Dropout, or pass training=self.training, so that evaluation drops nothing.",
    r"^(con)?cat": "Concatenate spikes of layers, along the channels: torch.cat([a, b], 1).",
    r"softmax": "Leave it out: cross entropy and decisions take logits.",
    r"^r?(mul|true_?div|div)": "Spike times cannot be scaled: normalise images before the network.",
}
NO_REMEDY = "No layer of ttfs_triton.nn does this; between layers pool, upsample, flatten, concatenate or drop spikes."


def _clamp(min: float | None = None, max: float | None = None) -> nn.Module:
    return nn.ReLU() if max is None and min == 0 else nn.Hardtanh(-torch.inf if min is None else min, max or 0.0)


def _mean(dim: Any = None, keepdim: bool = False) -> nn.Module | None:
    dims = sorted(place % 4 for place in dim) if isinstance(dim, tuple | list) else None
    pool = nn.AdaptiveAvgPool2d(1)
    return None if dims != [2, 3] else pool if keepdim else nn.Sequential(pool, nn.Flatten())


def _slice(index: Any) -> nn.Module | None:
    """Every k-th row and column of all channels, which is a pool of single neurons."""
    steps: Any = [*(each.step or 1 for each in index[2:]), 1, 1][:2]
    plain = index[:2] == (slice(None),) * 2 and all(each == slice(None, None, each.step) for each in index[2:])
    return nn.MaxPool2d(1, steps) if plain else None


def _pad(pad: Any, mode: str = "constant", value: float | None = None) -> nn.Module | None:
    """Channels of zeros in front of a map's channels, and behind them."""
    zeros = len(pad) == 6 and not any(pad[:4]) and min(pad) >= 0 and mode == "constant" and not value
    return nn.ConstantPad3d(tuple(pad), 0.0) if zeros else None


# By names, without leading and trailing underscores. Whether a view flattens is checked later, by shapes.
FUNCTIONS: dict[str, Callable[..., nn.Module | None]] = {
    "relu": lambda inplace=False: nn.ReLU(),
    "relu6": lambda inplace=False: nn.ReLU6(),
    "hardtanh": lambda min_val=-1.0, max_val=1.0, inplace=False: nn.Hardtanh(min_val, max_val),
    **dict.fromkeys(("clamp", "clip"), _clamp),
    "max_pool2d": nn.MaxPool2d,
    "avg_pool2d": nn.AvgPool2d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d,
    "mean": _mean,
    **dict.fromkeys(("flatten", "reshape", "view", "squeeze", "view_as", "reshape_as"), lambda *_, **__: nn.Flatten()),
    "interpolate": lambda size=None, scale_factor=None, mode="nearest", *_, **__: nn.Upsample(size, scale_factor, mode),
    "getitem": _slice,
    "pad": _pad,
    **dict.fromkeys(("contiguous", "clone", "detach", "to", "type", "type_as"), nn.Identity),
    **dict.fromkeys(("float", "double", "half", "bfloat16"), nn.Identity),
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
        lambda p=0.5, training=True, inplace=False: None if training else nn.Identity(),
    ),
}


def remedy_for(name: str) -> str:
    """What a network of our layers uses in place of a function, or of a type of modules, of this name."""
    return next((REMEDIES[pattern] for pattern in REMEDIES if re.search(pattern, name.lower())), NO_REMEDY)
