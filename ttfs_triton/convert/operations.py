"""Functions and methods of tensors that a traced ANN calls, as the modules that do the same."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


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


# Modules that do the same as functions and methods. Whether a view flattens is checked later, by shapes.
MODULE_OF: dict[Any, Callable[..., nn.Module | None]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), lambda inplace=False: nn.ReLU()),
    F.relu6: lambda inplace=False: nn.ReLU6(),
    F.hardtanh: lambda min_val=-1.0, max_val=1.0, inplace=False: nn.Hardtanh(min_val, max_val),
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clamp_", "clip"), _clamp),
    F.max_pool2d: nn.MaxPool2d,
    torch.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape", "squeeze"), lambda *_, **__: nn.Flatten()),
    F.interpolate: lambda size=None, scale_factor=None, mode="nearest", *_, **__: nn.Upsample(size, scale_factor, mode),
    operator.getitem: _slice,
    F.pad: _pad,
    **dict.fromkeys(("contiguous", "clone"), lambda *_, **__: nn.Identity()),
    **dict.fromkeys((F.dropout, F.dropout2d), lambda p=0.5, training=True, inplace=False: nn.Dropout().train(training)),
}
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
IN_PLACE = (operator.iadd, torch.relu_, "add_", "relu_", "clamp_")
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
