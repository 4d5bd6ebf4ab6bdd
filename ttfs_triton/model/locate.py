"""Finding a model's files: in a run's folder, another folder, the package or a repository on the Hub."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttfs_triton.model.description import CONFIG, LoadError
from ttfs_triton.model.files import WEIGHTS
from ttfs_triton.model.hub import HubError, download

PREFIX = "bundled:"
FOLDER = Path(__file__).parents[1] / "networks"
FACTS = "facts.json"
MOST_BYTES = 7 * 10**6
"""Largest size of all bundled networks together."""


def bundled_names() -> tuple[str, ...]:
    """Names of the bundled networks, each loaded as "bundled:NAME"."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob(f"*/{WEIGHTS}")))


def bundled_folder(source: str) -> Path:
    """The folder of "bundled:NAME"."""
    name = source.removeprefix(PREFIX)
    if name not in bundled_names():
        known = ", ".join(f"{PREFIX}{known}" for known in bundled_names())
        raise LoadError(f"load: a bundled network must be one of {known}; got {source}.")
    return FOLDER / name


def bundled_facts(name: str) -> dict[str, Any]:
    """Facts about a bundled network: figures over the whole test set, settings of its training, checksum of weights.

    Args:
        name: one of `bundled_names`.
    Raises:
        LoadError: there is no such network.
    Example:
        >>> 0.99 < bundled_facts("cnn1-mnist")["test_accuracy"] < 1
        True
    """
    return json.loads((bundled_folder(name) / FACTS).read_text(encoding="utf-8"))


_HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(?:/(?P<file>[^@]+\.safetensors))?(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model.

    Attributes:
        weights: model.safetensors.
        config: config.json beside it.
        run: folder of the run, or None if there are weights only.
        repo_id, commit: where they were downloaded from, or None.
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
        """The file's SHA-256 according to the Hub; None if it is not from there, or not in Git LFS."""
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
    path = Path(source)
    try:
        exists = path.exists()
    except OSError as error:  # of a name that is too long
        raise LoadError(
            f"load: source must be a name that a file can have; got {path!s:.80} ({error.strerror})."
        ) from None
    match = _HUB_NAME.fullmatch(str(source))
    two_words = str(source).count("/") == 1 and path.suffix == ".safetensors"  # a folder and a file
    if exists or isinstance(source, Path) or match is None or two_words:
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
    if missing := [each for each in wanted if not (folder / each).is_file()]:
        raise LoadError(
            f"load: {name} must hold {' and '.join(wanted)} (commit {folder.name}); it lacks {missing[0]}. "
            "Name another file: owner/name/FILE.safetensors. Weights of other kinds are read from this machine only."
        )
    return ModelFiles(folder / file, folder / config, repo_id=name, commit=folder.name)


def _local(path: Path) -> ModelFiles:
    if str(path).startswith(PREFIX) and not path.exists():
        folder = bundled_folder(str(path))
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
