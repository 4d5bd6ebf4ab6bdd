"""Plain named tensors from the content of a checkpoint file: opens containers, removes prefixes of wrappers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ttfs_triton.model.weights import not_finite

# Where training scripts put the weights. An average of the weights is what such a script scores, so it comes first.
CONTAINERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model_state", "model", "net")
# What DistributedDataParallel, torch.compile and modules that hold the network put in front of every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")


class ConversionError(ValueError):
    """Weights that cannot become the network asked for; nothing has been written."""


class WeightsError(ConversionError):
    """Weights that cannot be read: not there, not reachable, damaged, or not plain tensors."""


def plain_tensors(content: object, most_bytes: int | None = None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Find the tensors in the content of a file.

    Containers (`state_dict`, `model`, `net`, ..., nested too) are opened; a prefix that every name begins with
    (`module.`, `_orig_mod.`, `model.`, ..., repeated too) is removed.

    Args:
        content: a mapping of names to tensors, or of names to anything with such a mapping in it.
        most_bytes: that the tensors may take together: the size of the file. Default: any.
    Returns:
        Tensors by name, without prefixes; and what was opened, removed and left, in words.
    Raises:
        WeightsError: there is no such mapping; tensors that are sparse, quantised, complex or without data, that repeat
            elements, or take more than `most_bytes`; or values that are not finite.
    """
    steps: list[str] = []
    mapping = _open(content, steps)
    tensors: dict[str, Tensor] = {}
    for name, value in mapping.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"plain_tensors: weights must be named tensors only; got {type(value).__name__} under {name!r}. "
                "Save model.state_dict()."
            )
        tensors[name] = value.detach()
    if not tensors:
        raise WeightsError("plain_tensors: weights must hold tensors; got none.")
    tensors = _without_prefixes(tensors, steps)
    _check_memory(tensors, most_bytes)
    for name, tensor in tensors.items():
        _check(name, tensor)
    if problem := not_finite(tensors):
        raise WeightsError(f"plain_tensors: weights must be finite; got {problem}. The training diverged.")
    return tensors, tuple(steps)


def _open(content: object, steps: list[str]) -> Mapping[object, object]:
    """The innermost container; `steps` says which, and what lay beside it."""
    while True:
        if not isinstance(content, Mapping):
            raise WeightsError(
                f"plain_tensors: weights must be a mapping of names to tensors; got {type(content).__name__}. "
                "Save model.state_dict(), not the model."
            )
        found = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if found is None or any(isinstance(value, Tensor) and value.dim() > 0 for value in content.values()):
            return content
        beside = sorted(str(name) for name in content if name != found)
        steps.append(f"opened {found}" + (f", left {', '.join(beside)}" if beside else ""))
        content = content[found]


def _without_prefixes(tensors: dict[str, Tensor], steps: list[str]) -> dict[str, Tensor]:
    while True:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) and name != p for name in tensors)), None)
        if prefix is None:
            return tensors
        steps.append(f"removed the prefix {prefix}")
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _check_memory(tensors: Mapping[str, Tensor], most_bytes: int | None) -> None:
    """Refuse tensors larger than their storage: a view may show one element as 10¹², and fill memory when copied."""
    storages: dict[int, int] = {}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            continue  # refused by what they are
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise WeightsError(
                f"plain_tensors: {name} must hold each of its elements; got shape {list(tensor.shape)} over "
                f"{storage.nbytes()} bytes. Save it by tensor.contiguous()."
            )
    if most_bytes is not None and sum(storages.values()) > most_bytes:
        raise WeightsError(
            f"plain_tensors: tensors must take no more memory than their file; got {sum(storages.values())} bytes from "
            f"{most_bytes}. Get the file again."
        )


def _check(name: str, tensor: Tensor) -> None:
    plain = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_complex() or tensor.is_meta)
    if not plain or tensor.numel() == 0:
        raise WeightsError(
            f"plain_tensors: {name} must be a dense tensor of real numbers; got {tensor.dtype}, {tensor.layout}, "
            f"{list(tensor.shape)} on {tensor.device}. Save plain floating point weights."
        )
