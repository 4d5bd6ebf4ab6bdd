"""Reads weights from a file, a folder or the Hub as plain named tensors; no code in them runs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttfs_triton.model import LoadError
from ttfs_triton.model.description import CONFIG, BaseModel, ModelDescription
from ttfs_triton.model.files import (
    Header,
    ModelFiles,
    check_pair,
    find_model,
    not_finite,
    read_config,
    read_header,
    read_weights,
)
from ttfs_triton.model.hub import HubError

# Keys under which training scripts save weights. Scripts score averaged weights if they have them: these come first.
CONTAINERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model_state", "model", "net")
# Prefixes that DistributedDataParallel, torch.compile and modules around the network put in front of every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")


class ConversionError(ValueError):
    """Weights cannot become the network that was asked for; nothing has been written."""


class WeightsError(ConversionError):
    """Weights cannot be read: they are not there, not reachable, damaged, or not plain tensors."""


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], rule: str) -> None:
    """Load weights into a module, strictly; ConversionError, with `rule` in its message, if they do not fit."""
    try:
        module.load_state_dict(named_for(module, tensors))
    except RuntimeError as error:
        raise ConversionError(f"convert: {rule}; {error}") from error


def named_for(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of `plain_tensors` by the names of a module, whose tensors may all lie in one `self.net`."""
    names = list(module.state_dict())
    whole = dict(zip(_without_prefixes(names), names, strict=True))
    return {whole.get(name, name): tensor for name, tensor in tensors.items()}


def _without_prefixes(names: list[str]) -> list[str]:
    """Names without the prefixes that all of them share."""
    while names and (prefix := next((p for p in PREFIXES if all(n.startswith(p) and n != p for n in names)), None)):
        names = [name.removeprefix(prefix) for name in names]
    return names


def plain_tensors(content: object) -> dict[str, Tensor]:
    """Tensors by name from the content of a file, out of their containers and without prefixes that all names share."""
    tensors = dict[str, Tensor]()
    for name, value in _opened(content).items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"plain_tensors: weights must be named tensors only; got {type(value).__name__} under {name!r}. "
                "Save model.state_dict()."
            )
        strange = value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta
        if strange or value.numel() == 0:
            raise WeightsError(
                f"plain_tensors: {name} must be a dense tensor of real numbers; got {value.dtype}, {value.layout}, "
                f"{list(value.shape)} on {value.device}. Save plain floating point weights."
            )
        tensors[name] = value.detach()
    if not tensors:
        raise WeightsError("plain_tensors: weights must hold tensors; got none.")
    tensors = dict(zip(_without_prefixes(list(tensors)), tensors.values(), strict=True))
    if problem := not_finite(tensors):
        raise WeightsError(f"plain_tensors: weights must be finite; got {problem}. The training diverged.")
    return tensors


def _opened(content: object) -> Mapping[object, object]:
    """The innermost container."""
    while True:
        if not isinstance(content, Mapping):
            raise WeightsError(
                f"plain_tensors: weights must be a mapping of names to tensors; got {type(content).__name__}. "
                "Save model.state_dict(), not the model."
            )
        container = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if container is None or any(isinstance(value, Tensor) and value.dim() > 0 for value in content.values()):
            return content
        content = content[container]


MOST_BYTES = 2**32
"""Largest size of a pickled file in bytes: 4 GiB, eight times VGG16 for ImageNet."""


@dataclass(frozen=True)
class Weights:
    """Named tensors and their origin.

    Attributes:
        tensors: tensors by name, on the CPU, without containers and prefixes of wrappers.
        name: the source's name in reports and model cards: the Hub repository, or the file's name without folders.
        file: path of the weights on this machine.
        sha256: SHA-256 of the file, hexadecimal.
        repository, revision: name and commit of the Hub repository; None for a local file.
        config: content of the config.json beside the weights, None without one.
    """

    tensors: dict[str, Tensor]
    name: str
    file: Path
    sha256: str
    repository: str | None = None
    revision: str | None = None
    config: Mapping[str, Any] | None = None

    def description(self) -> ModelDescription | None:
        """Content of the config.json beside the weights; None if this package did not write it.

        Raises:
            WeightsError: config.json is damaged or from a newer version.
        """
        if self.config is None or "format_version" not in self.config:
            return None
        try:
            return ModelDescription.from_dict(self.config)
        except LoadError as error:
            raise WeightsError(f"open_weights: config.json beside {self.name} must be whole; {error}") from error

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std of the training images, as timm writes them into config.json; None without them.

        Raises:
            WeightsError: mean or std is no list of numbers.
        """
        values = {} if self.config is None else self.config.get("pretrained_cfg", self.config)
        mean, std = (values.get(name) for name in ("mean", "std")) if isinstance(values, Mapping) else (None, None)
        if mean is None or std is None:
            return None
        try:
            return tuple(map(float, mean)), tuple(map(float, std))
        except (TypeError, ValueError) as error:
            raise WeightsError(
                f"open_weights: mean and std in the config.json beside {self.name} must be numbers; {error}. Mend it."
            ) from error

    def base_model(self) -> BaseModel:
        """Origin of networks made from these weights, for their files: the one in config.json, or else this file."""
        description = self.description()
        recorded = None if description is None else description.base_model
        return recorded or BaseModel(self.file.name, self.sha256, self.repository, self.revision)


def open_weights(source: str | Path, *, sha256: str | None = None) -> Weights:
    """Read weights from this machine or the Hub.

    Args:
        source: a .safetensors file; a file of any other name that torch.save wrote, from which only tensors and plain
            containers are read; a folder (a run's, or one with model.safetensors); "bundled:NAME", a network that comes
            with the package; or a Hub repository, from which only safetensors are read: `org/name`,
            `org/name@revision` or `org/name/FILE.safetensors@revision`.
        sha256: expected SHA-256 of the file, hexadecimal. Default: the Hub's hash, if it keeps one.
    Raises:
        WeightsError: the source does not exist or cannot be reached; the file is damaged, has another SHA-256 or holds
            more than tensors; or weights are not finite.

    Checksums in files of this package are verified. Other files have no checksum of their numbers: without a hash, a
    flipped bit there goes unnoticed. Truncation, a damaged header, names and shapes that do not fit, infinities and NaN
    are noticed.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise WeightsError(f"open_weights: sha256 must be 64 hexadecimal digits; got {sha256!r}.")
    path = Path(source).expanduser()
    try:
        if path.is_file():
            name, files = path.name, ModelFiles(path, path.with_name(CONFIG))
        else:
            name = path.resolve().name if path.is_dir() else str(source)  # without folders of this machine
            files = find_model(path if path.is_dir() else str(source), described=False)
        digest = files.sha256
        for expected, origin in ((sha256, "as given"), (files.hub_sha256, "as the Hub says")):
            if expected is not None and digest != expected.lower():
                raise WeightsError(
                    f"open_weights: {name} must have the SHA-256 {expected.lower()}, {origin}; got {digest}. "
                    "The file is damaged or another one; get it again."
                )
        safe = files.weights.suffix == ".safetensors"
        tensors = plain_tensors(read_weights(files.weights) if safe else _read_pickle(files.weights))
        config = None
        if files.config.is_file():
            header = read_header(files.weights) if safe else Header({}, {})
            config = check_pair(read_config(files.config), header, files.config)
    except (LoadError, HubError, OSError) as error:
        raise WeightsError(f"open_weights: {error}") from error
    if not isinstance(config, dict | None):
        raise WeightsError(f"open_weights: {files.config} must hold a JSON object; got {type(config).__name__}.")
    return Weights(tensors, name, files.weights, digest, files.repo_id, files.commit, config)


def _read_pickle(file: Path) -> object:
    """The content of a file that torch.save wrote; no code in it runs."""
    if (size := file.stat().st_size) > MOST_BYTES:
        raise WeightsError(
            f"open_weights: {file} must have at most {MOST_BYTES:,} bytes; got {size:,}. Save it as safetensors."
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file provokes in the unpickler
        # PyTorch's own message advises to load without protection.
        asked = re.search(r"(?:GLOBAL|[Uu]nsupported (?:global|class|operand)) (\S+)", str(error))
        why = str(error).strip().split("\n")[0].split(". ")[0]
        why = f"it asks for {asked[1]}, whose code did not run" if asked else why
        raise WeightsError(
            f"open_weights: {file} must be a whole file of tensors that torch.save wrote; {why}. "
            "Save model.state_dict() as safetensors where the file is from."
        ) from error
