"""One file of weights from a Hub repository, and its configuration; from the cache where there is no network."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

from ttfs_triton.convert.checkpoint import WeightsError
from ttfs_triton.model.description import CONFIG
from ttfs_triton.model.hub import HubError, download, hub_errors


@dataclass(frozen=True)
class FoundFile:
    """A file of weights on this machine.

    Attributes:
        file: where it lies.
        name: what it is called in messages and reports, without folders of this machine.
        config: config.json beside it, or None.
        repository, revision: on the Hub, and its commit; or None.
        sha256: what it must hash to as the Hub says, or None.
    """

    file: Path
    name: str
    config: Path | None = None
    repository: str | None = None
    revision: str | None = None
    sha256: str | None = None


def download_weights(
    repository: str, file: str | None, revision: str | None, preferred: Sequence[str], suffixes: Sequence[str]
) -> FoundFile:
    """Fetch weights, and the config.json beside them, into the Hub's cache.

    Args:
        repository: `org/name`.
        file: path inside the repository. None: the first of `preferred`, or the only one ending in `suffixes`.
        revision: branch, tag or commit. None: the main branch.
        preferred: usual paths, first choice first.
        suffixes: of files that can be weights.
    Raises:
        WeightsError: no such repository, revision or file; no access; no network and nothing in the cache.
    """
    name = repository + (f"/{file}" if file else "") + (f"@{revision}" if revision else "")
    try:
        for candidate in [file] if file else preferred:
            folder = download(repository, [candidate, _config_beside(candidate)], revision=revision)
            if (folder / candidate).is_file():
                return _found(folder, candidate, name, repository)
        with hub_errors("open_weights", repository):
            names = huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
        weights = sorted(entry for entry in names if entry.endswith(tuple(suffixes)))
        if file is None and len(weights) == 1:
            (file,) = weights
            return _found(download(repository, [file, _config_beside(file)], revision=revision), file, name, repository)
    except HubError as error:
        raise WeightsError(
            f"open_weights: {name} is no file or folder here, and the Hub does not give it: {error}"
        ) from error
    listed = ", ".join(weights[:10]) + (", ..." if len(weights) > 10 else "") if weights else "no weights"
    raise WeightsError(
        f"open_weights: {name} must hold {file or ' or '.join(preferred)}; it has {listed}. "
        "Name a file: org/name/FILE[@revision]."
    )


def _found(folder: Path, file: str, name: str, repository: str) -> FoundFile:
    local, config = folder / file, folder / _config_beside(file)
    # The cache names what lies in Git LFS by the hash that the Hub gave, and links to it.
    blob = local.resolve().name
    return FoundFile(
        local,
        name,
        config if config.is_file() else None,
        repository,
        folder.name,
        blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None,
    )


def _config_beside(file: str) -> str:
    return f"{file.rpartition('/')[0]}/{CONFIG}".removeprefix("/")
