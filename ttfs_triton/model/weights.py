"""model.safetensors: named tensors with a checksum, since safetensors itself does not notice a flipped bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ttfs_triton.atomic import tensor_bytes

WEIGHTS = "model.safetensors"
CHECKSUM = "tensors_sha256"  # key in the file's metadata
# Types of the tensors of networks, by their names in the header; other types are refused.
_KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


class LoadError(ValueError):
    """Files hold no network of this package; the message says what was looked for and where."""


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        tensors: by name, type (None for types that no network has) and shape.
        metadata: texts by name.
    """

    tensors: Mapping[str, tuple[torch.dtype | None, tuple[int, ...]]]
    metadata: Mapping[str, str]


def weight_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of a safetensors file with a checksum; the same tensors give the same bytes.

    Tensors may be on any device. `torch.compile`'s prefixes are removed from their names; `metadata` goes into the
    header.
    """
    named = {name.replace("_orig_mod.", ""): tensor.detach().cpu() for name, tensor in tensors.items()}
    if problem := not_finite(named):
        raise ValueError(f"save: weights must be finite; got {problem}. Nothing was written: the training diverged.")
    # safetensors writes several entries of metadata in an order that changes from call to call: write the header here.
    plain = tensor_bytes(named)
    length = int.from_bytes(plain[:8], "little")
    entries = {
        "__metadata__": {"format": "pt", CHECKSUM: checksum(named), **(metadata or {})},
        **json.loads(plain[8 : 8 + length]),
    }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join((len(header).to_bytes(8, "little"), header, memoryview(plain)[8 + length :]))


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, hexadecimal, over names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The first tensor with infinities or NaN, in words; "" if there is none."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} values of {name} that are not"
    return ""


def read_header(path: Path) -> Header:
    """The header of a safetensors file; no tensor is read."""
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # `file` is not a mapping
            tensors = {name: (_KINDS.get(part.get_dtype()), tuple(part.get_shape())) for name, part in slices.items()}
            return Header(tensors, file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise LoadError(f"load: {path} must be a whole safetensors file; {error}.") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    expected = read_header(path).metadata.get(CHECKSUM)
    tensors = safetensors.torch.load_file(str(path))
    if expected is not None and checksum(tensors) != expected:
        raise LoadError(f"load: {path} must be as it was written; its checksum differs. Copy or download it again.")
    if problem := not_finite(tensors):
        raise LoadError(f"load: {path} must hold finite weights; got {problem}. Its training diverged.")
    return tensors


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors, which `read_model` has compared with the network; the network takes their precision."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) > 1:
        raise LoadError(f"load: {path} must be of one floating type; got {', '.join(sorted(map(str, kinds)))}.")
    for kind in kinds:
        network.to(kind)
    network.load_state_dict(tensors)
