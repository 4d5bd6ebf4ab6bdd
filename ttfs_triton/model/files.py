"""A model's two files: weights hold the SHA-256 of their config.json, and their header is checked before loading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttfs_triton.atomic import write_bytes
from ttfs_triton.model.description import CONFIG, OWN, SPECIFIED, ModelDescription
from ttfs_triton.model.own_network import OwnNetwork
from ttfs_triton.model.weights import CHECKSUM, WEIGHTS, Header, LoadError, read_header, read_weights, weight_bytes
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.untrusted_files import read_regular

CONFIG_CHECKSUM = "config_sha256"  # key in the metadata of the weights
MAX_CONFIG_BYTES = 2**24
Tensors = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


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

    The header of the weights is compared with the network before a tensor is read.

    Args:
        config, weights: the files.
        network: network that the user's code built. None: config.json says how to build it.
    """
    description = described(config, weights)
    header = read_header(weights)
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
    values = check_pair(read_config(config), read_header(weights), config)
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
