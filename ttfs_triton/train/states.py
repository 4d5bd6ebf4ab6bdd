"""Where a run stands: its position, and its optimizer as named tensors plus JSON, exact and readable without pickle.

Random states are no part of it: whatever is drawn is drawn from a generator seeded by the position.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_TUPLE, _FLOAT = "__tuple__", "__float__"


@dataclass
class EpochTotals:
    """Sums over the steps of the epoch so far, over all processes."""

    loss: float = 0.0
    correct: int = 0
    images: int = 0
    seconds: float = 0.0


@dataclass
class Position:
    """Progress of a run: enough, with the seed, to go on with the very next batch.

    Attributes:
        epoch: epochs completed and evaluated.
        step_in_epoch: optimiser steps done in the current epoch.
        step: optimiser steps done in all.
        totals: of the current epoch.
        metrics: one line for each completed epoch.
        best_epoch, best_accuracy: best on the validation images so far; epochs count from 1, 0 is none yet.
        best_miss: how far that epoch was from the run's target.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    totals: EpochTotals = field(default_factory=EpochTotals)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_miss: float = 0.0

    def is_best(self, accuracy: float, miss: float = 0.0) -> bool:
        """Whether validation figures are the best so far: by accuracy, then the later epoch.

        A few thousand held-out images often give several epochs one accuracy; the last of them is the most trained, and
        was never worse than the one with the lowest loss (`bench/checkpoint_choice.py`). Before all that counts how far
        the target was missed, beyond what is tolerated.
        """
        if self.best_epoch and miss != self.best_miss:
            return miss < self.best_miss
        return accuracy >= self.best_accuracy

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Position":
        """The position that `to_dict` gave, or did when ties were broken by a loss that is not read any more."""
        others = {key: value for key, value in values.items() if key not in ("totals", "best_loss")}
        return cls(totals=EpochTotals(**values["totals"]), **others)


def to_json(value: Any, where: str = "state") -> Any:
    """Express a value in strict JSON, keeping what JSON loses: tuples and non-finite floats.

    Args:
        value: None, bool, int, float, str, and lists, tuples and string-keyed dicts of these.
        where: name of the value in errors. Default: "state".
    Returns:
        The value with tuples as `{"__tuple__": [...]}` and NaN, ±inf as `{"__float__": "nan"}` and so on.
        Applying it twice changes nothing more. Finite floats stay: their text reads back exactly.
    Raises:
        TypeError: anything else, a tensor for instance.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: str(float(value))}
    if isinstance(value, (list, tuple)):
        items = [to_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"to_json: keys of {where} must be strings; got {key!r}. Convert them first.")
        return {key: to_json(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(
        f"to_json: {where} must be a JSON value; got {type(value).__qualname__}. "
        "Convert numbers with int() or float(), and save tensors as tensors."
    )


def from_json(value: Any) -> Any:
    """Undo `to_json`. Values without its marks come back as they are."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if isinstance(value, tuple):
        return tuple(from_json(item) for item in value)
    if isinstance(value, dict):
        if value.keys() == {_TUPLE}:
            return tuple(from_json(item) for item in value[_TUPLE])
        if value.keys() == {_FLOAT}:
            return float(value[_FLOAT])
        return {key: from_json(item) for key, item in value.items()}
    return value


def pack_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Flatten an optimizer's state.

    Args:
        optimizer: any torch optimizer, stepped or not.
    Returns:
        tensors: `<parameter index>.<name>` (moments, step counts) and `group<index>.<name>` (a learning rate
            held in a tensor), sharing memory with the optimizer.
        json_state: everything else, in strict JSON.
    Raises:
        TypeError: the state holds something that is neither a tensor nor a JSON value.
    """
    state_dict = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}

    def without_tensors(prefix: str, values: Mapping[str, Any]) -> Any:
        found = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        tensors.update({f"{prefix}.{key}": value for key, value in found.items()})
        return to_json({key: value for key, value in values.items() if key not in found}, prefix)

    json_state = {
        "optimizer": type(optimizer).__name__,
        "parameter_shapes": [list(parameter.shape) for parameter in _parameters(optimizer)],
        "state": {str(index): without_tensors(str(index), s) for index, s in state_dict["state"].items()},
        "param_groups": [without_tensors(f"group{i}", g) for i, g in enumerate(state_dict["param_groups"])],
        "tensor_shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    return tensors, json_state


def unpack_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], json_state: Mapping[str, Any]) -> None:
    """Load what `pack_optimizer` returned; the next step is then, bit for bit, the one that would have come.

    Args:
        optimizer: of the same class, over parameters of the same shapes in the same groups.
        tensors, json_state: from `pack_optimizer`, straight or through a file.
    Raises:
        ValueError: class, groups, parameter shapes or tensors do not fit; the optimizer is then unchanged.
    """
    json_state = from_json(dict(json_state))
    parameters = _parameters(optimizer)
    groups = json_state["param_groups"]
    _require_equal("optimizer", type(optimizer).__name__, json_state["optimizer"])
    _require_equal("number of parameter groups", len(optimizer.param_groups), len(groups))
    for index, (own, saved) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        _require_equal(f"number of parameters in group {index}", len(own["params"]), len(saved["params"]))
    for index, (own, saved) in enumerate(zip(parameters, json_state["parameter_shapes"], strict=True)):
        _require_equal(f"shape of parameter {index}", list(own.shape), saved)
    if wrong := sorted(tensors.keys() ^ json_state["tensor_shapes"].keys()):
        raise ValueError(
            f"unpack_optimizer: tensors must be those that json_state lists; "
            f"got {wrong} missing or unexpected. Pass both results of one pack_optimizer call."
        )
    for name, shape in json_state["tensor_shapes"].items():
        _require_equal(f"shape of {name}", list(tensors[name].shape), shape)

    state = {int(index): dict(values) for index, values in json_state["state"].items()}
    for name, tensor in tensors.items():
        prefix, key = name.split(".", 1)
        if prefix.startswith("group"):
            groups[int(prefix.removeprefix("group"))][key] = tensor
            continue
        parameter = parameters[int(prefix)]
        # Fused kernels walk memory in order: moments need the strides of their parameter.
        like = parameter if tensor.shape == parameter.shape else tensor
        moment = torch.empty_like(like, dtype=tensor.dtype, device=tensor.device)
        state[int(prefix)][key] = moment.copy_(tensor)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _require_equal(what: str, own: Any, saved: Any) -> None:
    if own != saved:
        raise ValueError(
            f"unpack_optimizer: {what} must be what was saved, {saved}; got {own}. "
            "Build model and optimizer from the configuration of the saved run."
        )


def mix(*numbers: int) -> int:
    """One seed from several numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63)
    return seed
