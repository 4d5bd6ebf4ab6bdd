"""A model's two files, config.json and model.safetensors, which hold checksums: of each other, and of the tensors.

safetensors itself does not notice a flipped bit. Headers are checked before a tensor is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ttfs_triton.atomic import tensor_bytes, write_bytes
from ttfs_triton.model.description import CONFIG, OWN, SPECIFIED, LoadError, ModelDescription
from ttfs_triton.model.own_network import OwnNetwork
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.untrusted_files import read_regular

WEIGHTS = "model.safetensors"
CHECKSUM = "tensors_sha256"  # key in the file's metadata
# Types of the tensors of networks, by their names in the header; other types are refused.
_KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
CONFIG_CHECKSUM = "config_sha256"  # key in the metadata of the weights
MAX_CONFIG_BYTES = 2**24
Tensors = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


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


def model_bytes(tensors: Mapping[str, Tensor], description: ModelDescription) -> dict[str, bytes]:
    """The content of both files by their names; the same `state_dict()`, on any device, gives the same bytes."""
    config = (json.dumps(description.to_dict(), indent=2, ensure_ascii=False) + "\n").encode()
    return {CONFIG: config, WEIGHTS: weight_bytes(tensors, {CONFIG_CHECKSUM: _sha256(config)})}


def write_model(folder: Path, tensors: Mapping[str, Tensor], description: ModelDescription) -> None:
    """Write the files of `model_bytes` into an existing folder, each whole or not at all.

    If the process is killed in between, the old weights are refused beside the new config.json.
    """
    for name, content in model_bytes(tensors, description).items():
        write_bytes(folder / name, content)


def read_model(
    config: Path, weights: Path, network: nn.Module | None = None
) -> tuple[ModelDescription, dict[str, Tensor]]:
    """A model's description and all tensors of its network, on the CPU.

    The header of the weights is compared with the network before a tensor is read: with the `network` that the user's
    code built or, without one, the network that config.json describes.
    """
    header = read_header(weights)
    description = _described(config, header)
    try:
        wanted = _wanted(description, network, config)
    except LoadError:
        raise
    except ValueError as error:
        raise LoadError(f"load: {config} must be what training wrote; {error}") from error
    _check_tensors(wanted, header, weights)
    return description, read_weights(weights)


def read_config(path: Path) -> bytes:
    """The content of a config.json."""
    try:
        return read_regular(path, MAX_CONFIG_BYTES)
    except FileNotFoundError:
        raise LoadError(
            f"load: {path} must describe the network of the weights; there is no such file. "
            "Training writes one beside its weights; keep both together."
        ) from None
    except OSError as error:
        raise LoadError(f"load: {path} must be a readable file; {error}. Get it again.") from error


def check_pair(config: bytes, header: Header, path: Path) -> Any:
    """The JSON values of a config.json, if the weights were written with exactly this file; not checked any further.

    Without a format_version, the file is another project's, and needs no checksum. `path` is for messages.
    """
    known = header.metadata.get(CONFIG_CHECKSUM)
    if known is not None and known != _sha256(config):
        raise LoadError(
            f"load: {path} must be as it was written with the weights; its checksum differs. "
            "Copy or download both again."
        )
    try:
        values = json.loads(config.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also numbers with too many digits
        raise LoadError(f"load: {path} must be what training wrote; it is not JSON ({error}).") from error
    ours = {"format", CHECKSUM, CONFIG_CHECKSUM}
    paired = isinstance(values, dict) and values.get("format_version") in (SPECIFIED, OWN)
    if (paired or known is not None) and (header.metadata.keys() != ours or header.metadata["format"] != "pt"):
        raise LoadError(
            f"load: the weights beside {path} must be the ones written with it; their header has "
            f"{', '.join(sorted(header.metadata)) or 'no metadata'}, not {', '.join(sorted(ours))}. "
            "Copy or download both again."
        )
    return values


def described(config: Path, weights: Path) -> ModelDescription:
    """The description in a config.json that belongs to these weights."""
    return _described(config, read_header(weights))


def _described(config: Path, header: Header) -> ModelDescription:
    values = check_pair(read_config(config), header, config)
    try:
        return ModelDescription.from_dict(values)
    except ValueError as error:
        raise LoadError(f"load: {config} must be what training wrote; {error}") from error


def _wanted(description: ModelDescription, network: nn.Module | None, path: Path) -> Tensors:
    """Tensors of config.json's network; a `network` that the user's code built must fit the description."""
    known = description.network
    if isinstance(known, OwnNetwork):
        if network is None:
            hint = "code that it does not hold. Pass it: from_pretrained(…, network=…), or --network FILE.py:FUNCTION."
            if known.builder == "network.py:build" and (code := path.with_name("network.py")).is_file():
                hint = f"and network.py is here; code runs only if you name it: --network {code}:build."
            raise LoadError(f"load: {path} must say how its network is built; it only names {known.builder}, {hint}")
        known.take(network)
        return _tensors(network)
    if network is not None:
        raise LoadError(f"load: network must be None where {path} says how it is built; got {type(network).__name__}.")
    return network_tensors(known)


def network_tensors(config: NetworkConfig) -> Tensors:
    """Type and shape of each tensor of a network's state dict, by name; takes no memory for them."""
    with torch.device("meta"):
        return _tensors(TTFSNetwork(config))


def _tensors(network: nn.Module) -> Tensors:
    state = network.state_dict()
    return {name.replace("_orig_mod.", ""): (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def _check_tensors(wanted: Tensors, header: Header, path: Path) -> None:
    problems = [
        f"{name} missing" if name not in header.tensors else f"{name} unexpected"
        for name in sorted(wanted.keys() ^ header.tensors.keys())
    ]
    for name in sorted(wanted.keys() & header.tensors.keys()):
        (kind, shape), (found, found_shape) = wanted[name], header.tensors[name]
        fits = found is not None and (found == kind or (kind.is_floating_point and found.is_floating_point))
        if not fits or shape != found_shape:
            problems.append(f"{name} {found} {list(found_shape)}, not {kind} {list(shape)}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise LoadError(f"load: {path} must hold the network of its config.json; got {'; '.join(problems[:5])}{more}.")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
