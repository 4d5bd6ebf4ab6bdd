"""A model's two files, config.json and model.safetensors: found here or on the Hub, read, written.

The weights hold checksums of config.json and of the tensors, since safetensors itself does not notice a flipped bit.
Headers are checked before a tensor is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ttfs_triton.atomic import tensor_bytes, write_bytes
from ttfs_triton.model.description import CONFIG, OWN, SPECIFIED, LoadError, ModelDescription
from ttfs_triton.model.hub import HubError, download
from ttfs_triton.model.own_network import Network, OwnNetwork
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.untrusted_files import read_regular

WEIGHTS, FACTS = "model.safetensors", "facts.json"
CHECKSUM, CONFIG_CHECKSUM = "tensors_sha256", "config_sha256"  # keys in the metadata of the weights
MAX_CONFIG_BYTES = 2**24
# Types of the tensors of networks, by their names in the header; other types are refused.
_KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}

PREFIX = "bundled:"
FOLDER = Path(__file__).parents[1] / "networks"
MOST_BYTES = 7 * 10**6  # largest size of all bundled networks together
_HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(?:/(?P<file>[^@]+\.safetensors))?(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model.

    Attributes:
        weights: model.safetensors.
        config: config.json beside it.
        run: folder of the run, or None if the weights are not in one.
        repo_id, commit: repository and commit that they were downloaded from, or None.
        bundled: whether the files come with the package.
    """

    weights: Path
    config: Path
    run: Path | None = None
    repo_id: str | None = None
    commit: str | None = None
    bundled: bool = False

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights' file, hexadecimal."""
        with open(self.weights, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def hub_sha256(self) -> str | None:
        """The SHA-256 of the weights' file according to the Hub; None if it is not from there, or not in Git LFS."""
        # The cache links to files of Git LFS, which are named by the Hub's hash.
        blob = self.weights.resolve().name if self.repo_id is not None else ""
        return blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None

    @property
    def name(self) -> str:
        """A short name for titles: the name of the repository, of the run, or of the weights' folder or file."""
        if self.repo_id is not None:
            return self.repo_id.rpartition("/")[2]
        if self.run is not None:
            return self.run.resolve().name
        return self.weights.resolve().parent.name if self.weights.name == WEIGHTS else self.weights.stem


# ---- finding


def find_model(
    source: str | Path, *, revision: str | None = None, described: bool = True, **options: Any
) -> ModelFiles:
    """Find a model's files, downloading them from the Hub only if the source does not exist locally.

    Args:
        source: a run's folder (its best weights are taken), a folder with config.json and model.safetensors, a
            safetensors file with a config.json beside it, or, as a string, "owner/name[/FILE.safetensors][@revision]"
            or "bundled:NAME" for one that comes with the package.
        revision: branch, tag or commit of a repository.
        described: whether a repository must hold a config.json, too.
        **options: as in `huggingface_hub.snapshot_download`.
    Raises:
        LoadError: the source does not exist, or holds no model.
        HubError: as `download`.
    """
    path, match = Path(source), _HUB_NAME.fullmatch(str(source))
    two_words = str(source).count("/") == 1 and path.suffix == ".safetensors"  # a folder and a file
    if path.exists() or isinstance(source, Path) or match is None or two_words:
        if revision is not None:
            raise LoadError(f"load: revision must be None for a model on this machine; got {revision!r} for {path}.")
        return _local(path)
    name, file, after = match["name"], match["file"] or WEIGHTS, match["revision"]
    if after and revision not in (None, after):
        raise LoadError(f"load: revision must be given once; got {source} and {revision}.")
    config = f"{file.rpartition('/')[0]}/{CONFIG}".removeprefix("/")
    try:
        folder = download(name, [config, file], revision=after or revision, **options)
    except HubError as error:
        raise HubError(f"{error} There is no local folder {path} either.") from error.__cause__
    wanted = [config, file] if described else [file]
    if missing := [part for part in wanted if not (folder / part).is_file()]:
        raise LoadError(
            f"load: {name} must hold {' and '.join(wanted)} (commit {folder.name}); it lacks {missing[0]}. "
            "Name another file: owner/name/FILE.safetensors. Weights of other kinds are read from this machine only."
        )
    return ModelFiles(folder / file, folder / config, repo_id=name, commit=folder.name)


def _local(path: Path) -> ModelFiles:
    if str(path).startswith(PREFIX) and not path.exists():
        folder = _bundled_folder(str(path))
        return ModelFiles(folder / WEIGHTS, folder / CONFIG, bundled=True)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise LoadError(f"load: path must be a folder or a .safetensors file; got {path}.")
        return ModelFiles(path, path.with_name(CONFIG))
    if not path.is_dir():
        raise LoadError(
            f"load: source must be a file, a folder or a Hub repository (owner/name); there is nothing at {path}."
        )
    for weights, run in ((path / "best" / WEIGHTS, path), (path / WEIGHTS, None)):
        if weights.is_file():
            return ModelFiles(weights, weights.with_name(CONFIG), run)
    raise LoadError(
        f"load: {path} must hold best/{WEIGHTS} (a run) or {WEIGHTS}; it has neither. "
        "A run writes its best weights after the first epoch."
    )


def bundled_names() -> tuple[str, ...]:
    """Names of the bundled networks, which are loaded as "bundled:NAME"."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob(f"*/{WEIGHTS}")))


def _bundled_folder(source: str) -> Path:
    """The folder of "bundled:NAME"."""
    name = source.removeprefix(PREFIX)
    if name not in bundled_names():
        names = ", ".join(PREFIX + bundled for bundled in bundled_names())
        raise LoadError(f"load: a bundled network must be one of {names}; got {source}.")
    return FOLDER / name


def bundled_facts(name: str) -> dict[str, Any]:
    """Facts about a bundled network: figures on the whole test set, settings of its training, checksum of the weights.

    Args:
        name: one of `bundled_names`.
    Raises:
        LoadError: there is no such network.
    Example:
        >>> 0.99 < bundled_facts("cnn1-mnist")["test_accuracy"] < 1
        True
    """
    return json.loads((_bundled_folder(name) / FACTS).read_text(encoding="utf-8"))


# ---- reading


class Header(NamedTuple):
    """The header of a safetensors file: types (None for one that no network has) and shapes of tensors, and texts."""

    tensors: Mapping[str, tuple[torch.dtype | None, tuple[int, ...]]]
    metadata: Mapping[str, str]


def read_model(
    files: ModelFiles, network: Network | None = None
) -> tuple[ModelDescription, nn.Module, dict[str, Tensor]]:
    """A model's description, its network, and the tensors that `load_tensors` gives the network, on the CPU.

    The network is the one that config.json describes, without values, on the device "meta"; or the `network` that the
    user's code builds. The header of the weights is compared with the network before a tensor is read.
    """
    description = described(files)
    built = _network_of(description.network, network, files.config)
    _check_tensors(built, read_header(files.weights), files.weights)
    return description, built, read_weights(files.weights)


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network the tensors that `read_model` has compared with it; the network takes their precision."""
    network.to(next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()))
    if next(network.parameters()).is_meta:
        network.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    else:
        network.load_state_dict(tensors)


def described(files: ModelFiles) -> ModelDescription:
    """The description in the config.json that belongs to the weights."""
    values = check_pair(read_config(files.config), read_header(files.weights), files.config)
    with _content_of(files.config):
        return ModelDescription.from_dict(values)


@contextmanager
def _content_of(config: Path) -> Iterator[None]:
    """Errors in the `with` block become LoadErrors that name this config.json."""
    try:
        yield
    except ValueError as error:
        raise LoadError(f"load: {config} must be what training wrote; {error}") from error


def _network_of(wanted: NetworkConfig | OwnNetwork, network: Network | None, path: Path) -> nn.Module:
    """The network that config.json describes, or the user's, which must fit the description."""
    if isinstance(wanted, NetworkConfig):
        if network is not None:
            got = type(network).__name__
            raise LoadError(f"load: network must be None where {path} says how it is built; got {got}.")
        with _content_of(path), torch.device("meta"):
            return TTFSNetwork(wanted)
    if network is None:
        hint = "code that it does not hold. Pass it: from_pretrained(…, network=…), or --network FILE.py:FUNCTION."
        if wanted.builder == "network.py:build" and (code := path.with_name("network.py")).is_file():
            hint = f"and network.py is here; code runs only if you name it: --network {code}:build."
        raise LoadError(f"load: {path} must say how its network is built; it only names {wanted.builder}, {hint}")
    built = wanted.build(network)
    with _content_of(path):
        wanted.take(built)
    return built


def _check_tensors(network: nn.Module, header: Header, path: Path) -> None:
    """Raise LoadError unless the weights hold the network's tensors, all real numbers in one precision."""
    state = network.state_dict()
    wanted = {name.replace("_orig_mod.", ""): (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    problems = [
        f"{name} missing" if name not in header.tensors else f"{name} unexpected"
        for name in sorted(wanted.keys() ^ header.tensors.keys())
    ]
    for name in sorted(wanted.keys() & header.tensors.keys()):
        (kind, shape), (stored, stored_shape) = wanted[name], header.tensors[name]
        fits = stored is not None and (stored == kind or (kind.is_floating_point and stored.is_floating_point))
        if not fits or shape != stored_shape:
            problems.append(f"{name} {stored} {list(stored_shape)}, not {kind} {list(shape)}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise LoadError(f"load: {path} must hold the network of its config.json; got {'; '.join(problems[:5])}{more}.")
    kinds = {kind for kind, _ in header.tensors.values() if kind is not None and kind.is_floating_point}
    if len(kinds) > 1:
        raise LoadError(f"load: {path} must be of one floating type; got {', '.join(sorted(map(str, kinds)))}.")


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
    """The JSON values of a config.json, not checked, if the weights were written with exactly this file.

    A file without a format_version is another project's, and needs no checksum. `path` is for messages.
    """
    expected, again = header.metadata.get(CONFIG_CHECKSUM), "Copy or download both again."
    if expected is not None and expected != _sha256(config):
        raise LoadError(f"load: {path} must be as it was written with the weights; its checksum differs. {again}")
    try:
        values = json.loads(config.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also numbers with too many digits
        raise LoadError(f"load: {path} must be what training wrote; it is not JSON ({error}).") from error
    ours = {"format", CHECKSUM, CONFIG_CHECKSUM}
    paired = isinstance(values, dict) and values.get("format_version") in (SPECIFIED, OWN)
    if (paired or expected is not None) and (header.metadata.keys() != ours or header.metadata["format"] != "pt"):
        raise LoadError(
            f"load: the weights beside {path} must be the ones written with it; their header has "
            f"{', '.join(sorted(header.metadata)) or 'no metadata'}, not {', '.join(sorted(ours))}. {again}"
        )
    return values


# ---- writing


def write_model(folder: Path, tensors: Mapping[str, Tensor], description: ModelDescription) -> None:
    """Write the files of `model_bytes` into an existing folder, every file whole or not at all.

    If the process is killed in between, the old weights are refused beside the new config.json.
    """
    for name, content in model_bytes(tensors, description).items():
        write_bytes(folder / name, content)


def model_bytes(tensors: Mapping[str, Tensor], description: ModelDescription) -> dict[str, bytes]:
    """The content of both files by their names; the same `state_dict()`, on any device, gives the same bytes."""
    config = (json.dumps(description.to_dict(), indent=2, ensure_ascii=False) + "\n").encode()
    return {CONFIG: config, WEIGHTS: weight_bytes(tensors, {CONFIG_CHECKSUM: _sha256(config)})}


def weight_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of a safetensors file with a checksum; the same tensors give the same bytes.

    Tensors may be on any device. `torch.compile`'s prefixes are removed from their names; `metadata` goes into the
    header.
    """
    named = {name.replace("_orig_mod.", ""): tensor.detach().cpu() for name, tensor in tensors.items()}
    if problem := not_finite(named):
        raise ValueError(f"save: weights must be finite; got {problem}. Nothing was written: the training diverged.")
    # safetensors writes several metadata entries in an order that changes from call to call, so write the header here.
    plain = tensor_bytes(named)
    length = int.from_bytes(plain[:8], "little")
    entries = {"__metadata__": {"format": "pt", CHECKSUM: checksum(named), **(metadata or {})}}
    header = json.dumps(entries | json.loads(plain[8 : 8 + length]), separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join((len(header).to_bytes(8, "little"), header, memoryview(plain)[8 + length :]))


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, hexadecimal, of names, types, shapes and values, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Words about the first tensor with infinities or NaN; "" if there is none."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} values of {name} that are not"
    return ""


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
