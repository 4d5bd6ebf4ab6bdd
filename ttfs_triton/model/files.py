"""A model's two files as one: the weights know their config.json, and nothing is built that they do not fill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttfs_triton.atomic import write_bytes
from ttfs_triton.model.description import CONFIG, FORMAT_VERSION, ModelDescription
from ttfs_triton.model.weights import (
    CHECKSUM,
    WEIGHTS,
    Header,
    LoadError,
    read_header,
    read_weights,
    weight_bytes,
)
from ttfs_triton.nn import NetworkConfig, TTFSNetwork

CONFIG_CHECKSUM = "config_sha256"  # key in the metadata of the weights
PAIRED_FORMAT = 3  # of config.json, from which on weights must know it
MAX_CONFIG_BYTES = 2**24


def model_bytes(tensors: Mapping[str, Tensor], description: ModelDescription) -> dict[str, bytes]:
    """The content of both files by their names; the same model gives the same bytes.

    Args:
        tensors: as of `state_dict()`, on any device.
        description: of the model.
    """
    config = (json.dumps(description.to_dict(), indent=2, ensure_ascii=False) + "\n").encode()
    return {CONFIG: config, WEIGHTS: weight_bytes(tensors, {CONFIG_CHECKSUM: _sha256(config)})}


def write_model(folder: Path, tensors: Mapping[str, Tensor], description: ModelDescription) -> None:
    """Write both files, each whole or not at all.

    A kill in between leaves weights beside the new config.json: if that is as before, as in a run, they are a model;
    if not, they are refused.

    Args:
        folder: must exist.
        tensors, description: as for `model_bytes`.
    Raises:
        OSError: a file cannot be written.
    """
    for name, content in model_bytes(tensors, description).items():
        write_bytes(folder / name, content)


def read_model(config: Path, weights: Path) -> tuple[ModelDescription, dict[str, Tensor]]:
    """Read both files; tensors, on the CPU, are all of the network's and in one floating type.

    Memory is taken only when the header of the weights has been found to be that of the network.

    Raises:
        LoadError: a file is missing, damaged, or not the other's.
    """
    content, header = read_config(config), read_header(weights)
    values = check_pair(content, header, config)
    try:
        description = ModelDescription.from_dict(values)
        wanted = network_tensors(description.network)
    except ValueError as error:
        raise LoadError(f"load: {config} must be what training wrote; {error}") from error
    _check_tensors(wanted, header, weights)
    return description, read_weights(weights)


def read_config(path: Path) -> bytes:
    """The content of a config.json.

    Raises:
        LoadError: there is none, it cannot be read, or it is larger than `MAX_CONFIG_BYTES`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        raise LoadError(
            f"load: {path} must say what network the weights are of; there is none. "
            "Training writes one beside its weights; keep both together."
        ) from None
    except OSError as error:
        raise LoadError(f"load: {path} must be readable; {error}.") from error
    if len(content) > MAX_CONFIG_BYTES:
        raise LoadError(f"load: {path} must have at most {MAX_CONFIG_BYTES} bytes; it has more. Get it again.")
    return content


def check_pair(config: bytes, header: Header, path: Path) -> Any:
    """Make sure that a config.json is, bit for bit, the one that weights were written with.

    Args:
        config: content of the file. Formats 1 and 2 were not known to the weights: nothing is compared there.
        header: of the weights.
        path: of config.json, for messages.
    Returns:
        The JSON values in it, not checked any further.
    Raises:
        LoadError: it is another one, or no JSON.
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
        raise LoadError(f"load: {path} must be what training wrote; it is no JSON ({error}).") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    paired = isinstance(version, int) and PAIRED_FORMAT <= version <= FORMAT_VERSION
    ours = {"format", CHECKSUM, CONFIG_CHECKSUM}
    if (paired or known is not None) and (header.metadata.keys() != ours or header.metadata["format"] != "pt"):
        raise LoadError(
            f"load: the weights beside {path} must be those that it was written with; their header has "
            f"{', '.join(sorted(header.metadata)) or 'no metadata'}, not {', '.join(sorted(ours))}. "
            "Copy or download both again."
        )
    return values


def network_tensors(config: NetworkConfig) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor of a network's state dict, by name; takes no memory for them.

    Raises:
        ValueError: as `TTFSNetwork`.
    """
    with torch.device("meta"):
        state = TTFSNetwork(config).state_dict()
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def _check_tensors(wanted: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], header: Header, path: Path) -> None:
    floating = {kind for kind, _ in header.tensors.values() if kind is not None and kind.is_floating_point}
    if len(floating) > 1:
        raise LoadError(f"load: {path} must be of one floating type; got {', '.join(sorted(map(str, floating)))}.")
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
