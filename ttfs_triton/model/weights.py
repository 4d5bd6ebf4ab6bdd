"""model.safetensors: named tensors with a checksum, since safetensors itself does not notice a flipped bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ttfs_triton.atomic import tensor_bytes, write_bytes

WEIGHTS = "model.safetensors"
CHECKSUM = "tensors_sha256"  # key in the file's metadata


class LoadError(ValueError):
    """Files that hold no network of ours: says what was looked for and where."""


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and their checksum, whole or not at all; `torch.compile`'s prefixes are taken off the names.

    Args:
        path: the file; its folder must exist.
        tensors: as of `state_dict()`, on any device.
    Raises:
        OSError: the file cannot be written; an old one is untouched.
    """
    write_bytes(path, weight_bytes(tensors))


def weight_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """What `write_weights` writes; the same tensors give the same bytes."""
    named = {name.replace("_orig_mod.", ""): tensor.detach().cpu() for name, tensor in tensors.items()}
    # safetensors writes several entries of metadata in an order that changes from call to call: the header is ours.
    plain = tensor_bytes(named)
    length = int.from_bytes(plain[:8], "little")
    entries = {"__metadata__": {"format": "pt", CHECKSUM: checksum(named)}, **json.loads(plain[8 : 8 + length])}
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors, on the CPU.

    Raises:
        LoadError: the file is not there, is no safetensors file, is cut off, or fails its checksum if it has one.
    """
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            expected = (file.metadata() or {}).get(CHECKSUM)
        tensors = safetensors.torch.load_file(str(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise LoadError(f"load: {path} must be a whole safetensors file; {error}.") from error
    if expected is not None and checksum(tensors) != expected:
        raise LoadError(f"load: {path} must be as it was written; its checksum differs. Copy or download it again.")
    return tensors


def read_weights_into(network: nn.Module, path: Path) -> None:
    """Load a file into a network, strictly: every tensor used, every parameter found. The network takes its precision.

    Raises:
        LoadError: as `read_weights`, or the tensors are those of another network.
    """
    tensors = read_weights(path)
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) > 1:
        raise LoadError(f"load: {path} must be of one floating type; got {', '.join(sorted(map(str, kinds)))}.")
    try:
        for kind in kinds:
            network.to(kind)
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise LoadError(f"load: {path} must hold the network of its config.json; {error}") from error
