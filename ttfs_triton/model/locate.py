"""Where a model's files are: a run's folder, a folder, a file, in the package, or a repository on the Hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ttfs_triton.model.bundled import PREFIX, bundled_folder
from ttfs_triton.model.description import CONFIG
from ttfs_triton.model.hub import REPOSITORY, HubError, download
from ttfs_triton.model.weights import WEIGHTS, LoadError


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model.

    Attributes:
        weights: model.safetensors.
        config: config.json beside it.
        run: folder of the run, or None if there are weights only.
        repo_id, commit: where they were downloaded from, or None.
        bundled: they come with the package; see `ttfs_triton.model.bundled`.
    """

    weights: Path
    config: Path
    run: Path | None = None
    repo_id: str | None = None
    commit: str | None = None
    bundled: bool = False

    @property
    def sha256(self) -> str:
        """Of the weights' file, hexadecimal."""
        with open(self.weights, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def name(self) -> str:
        """A short name for titles: of the repository, the run, or the folder of the weights."""
        if self.repo_id is not None:
            return self.repo_id.rpartition("/")[2]
        if self.run is not None:
            return self.run.resolve().name
        return self.weights.resolve().parent.name if self.weights.name == WEIGHTS else self.weights.stem


def find_model(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> ModelFiles:
    """Find a model, downloading it if it is on the Hub. What exists locally is never looked for there.

    Args:
        source: a run's folder (its best weights are taken), a folder with config.json and model.safetensors, a
            safetensors file with a config.json beside it, or, as a string, "owner/name", "owner/name@revision" or
            "bundled:NAME" for one that comes with the package.
        revision: branch, tag or commit, of a repository.
        token, cache_dir, force_download, local_files_only: as of `download`.
    Raises:
        LoadError: nothing there, or something else.
        HubError: as `download`.
    """
    path = Path(source)
    if str(source).startswith(PREFIX) and not path.exists():
        if revision is not None:
            raise LoadError(f"load: revision must be None for a bundled network; got {revision!r} for {source}.")
        folder = bundled_folder(str(source))
        return ModelFiles(folder / WEIGHTS, folder / CONFIG, bundled=True)
    name, _, after = str(source).partition("@")
    if path.exists() or isinstance(source, Path) or not REPOSITORY.fullmatch(name) or path.suffix == ".safetensors":
        if revision is not None:
            raise LoadError(f"load: revision must be None for a local model; got {revision!r} for {path}.")
        return _local(path)
    if after and revision not in (None, after):
        raise LoadError(f"load: revision must be given once; got {source} and {revision}.")
    try:
        folder = download(
            name,
            [CONFIG, WEIGHTS],
            revision=after or revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
    except HubError as error:
        raise HubError(f"{error} There is no local folder {path} either.") from error.__cause__
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise LoadError(f"load: {name} must hold {CONFIG} and {WEIGHTS} (commit {folder.name}); it lacks {file}.")
    return ModelFiles(folder / WEIGHTS, folder / CONFIG, repo_id=name, commit=folder.name)


def _local(path: Path) -> ModelFiles:
    if path.is_file():
        if path.suffix != ".safetensors":
            raise LoadError(f"load: path must be a folder or a .safetensors file; got {path}.")
        return ModelFiles(path, path.with_name(CONFIG))
    if not path.is_dir():
        raise LoadError(f"load: path must exist; there is nothing at {path}.")
    for weights, run in ((path / "best" / WEIGHTS, path), (path / WEIGHTS, None)):
        if weights.is_file():
            return ModelFiles(weights, weights.with_name(CONFIG), run)
    raise LoadError(
        f"load: {path} must hold best/{WEIGHTS} (a run) or {WEIGHTS}; it has neither. "
        "A run writes its best weights after the first epoch."
    )
