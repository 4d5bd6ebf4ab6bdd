"""One file of weights from a Hub repository, and its configuration; from the cache where there is no network."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from ttfs_triton.convert.errors import WeightsError

# The HTTP library's own base class, httpx or its successor, as huggingface_hub uses it: no connection, timeouts.
_TransportError: type[Exception] = errors.HfHubHTTPError.__bases__[0]
_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class FoundFile:
    """A file of weights on this machine.

    Attributes:
        file: where it lies.
        name: what it is called in messages and reports, without folders of this machine.
        config: config.json beside it, or None.
        revision: commit of the Hub repository, or None.
        sha256: what it must hash to as the Hub says, or None.
    """

    file: Path
    name: str
    config: Path | None = None
    revision: str | None = None
    sha256: str | None = None


def download(
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
        info = huggingface_hub.HfApi().model_info(
            repository, revision=revision, files_metadata=True, timeout=_TIMEOUT_S
        )
        hashes = {entry.rfilename: entry.lfs.sha256 if entry.lfs else None for entry in info.siblings or []}
        file = _choose(name, file, list(hashes), preferred, suffixes)
        local = Path(huggingface_hub.hf_hub_download(repository, file, revision=info.sha))
        config = None
        if (beside := _config_beside(file)) in hashes:
            config = Path(huggingface_hub.hf_hub_download(repository, beside, revision=info.sha))
        return FoundFile(local, name, config, info.sha, hashes[file])
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise WeightsError(_refusal(name, error)) from error
    except (OSError, _TransportError) as error:  # offline mode is one of them
        return _cached(repository, file, revision, preferred, name, error)


def _choose(
    name: str, file: str | None, names: Sequence[str], preferred: Sequence[str], suffixes: Sequence[str]
) -> str:
    weights = sorted(entry for entry in names if entry.endswith(tuple(suffixes)))
    if file is not None:
        if file in names:
            return file
        raise WeightsError(f"open_weights: {name} must exist on the Hub; that repository has {_listed(weights)}.")
    usual = [entry for entry in preferred if entry in weights]
    if usual or len(weights) == 1:
        return (usual or weights)[0]
    raise WeightsError(
        f"open_weights: {name} must hold {' or '.join(preferred)}; it has {_listed(weights)}. "
        "Name a file: org/name/FILE[@revision]."
    )


def _listed(weights: Sequence[str]) -> str:
    return ", ".join(weights[:10]) + (", ..." if len(weights) > 10 else "") if weights else "no weights"


def _config_beside(file: str) -> str:
    return f"{file.rpartition('/')[0]}/config.json".removeprefix("/")


def _refusal(name: str, error: Exception) -> str:
    """What the Hub answered, without its address: no token or private path can be in there."""
    if isinstance(error, errors.HFValidationError):
        return f"open_weights: {name} must be the name of a Hub repository; got one that the Hub's rules exclude."
    if isinstance(error, errors.GatedRepoError):
        return f"open_weights: {name} must be open to you; it is gated. Accept its terms there, then hf auth login."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"open_weights: {name} must exist; the Hub has the repository, not this revision."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"open_weights: {name} must exist: there is no such file or folder here, and no such repository on the "
            "Hub, or it is private. Check the name; for a private one, hf auth login."
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"open_weights: {name} must be open to you; the Hub answered {status}. Check your token: hf auth whoami."
    if status == 404:
        return f"open_weights: {name} must exist on the Hub; it answered 404."
    return f"open_weights: {name} must be served by the Hub; it answered {status}. Try again later."


def _cached(
    repository: str, file: str | None, revision: str | None, preferred: Sequence[str], name: str, error: Exception
) -> FoundFile:
    """The same from the cache, where a file of Git LFS is named by its hash."""

    def find(path: str) -> Path | None:
        try:
            found = huggingface_hub.hf_hub_download(repository, path, revision=revision, local_files_only=True)
        except (errors.LocalEntryNotFoundError, errors.HFValidationError):
            return None
        return Path(found)

    for candidate in [file] if file else preferred:
        local = find(candidate)
        if local is not None:
            commit = re.search(r"snapshots[/\\]([0-9a-f]{40})[/\\]", str(local))
            blob = local.resolve().name
            return FoundFile(
                local,
                name,
                find(_config_beside(candidate)),
                commit[1] if commit else None,
                blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None,
            )
    offline = isinstance(error, errors.OfflineModeIsEnabled)
    why = "HF_HUB_OFFLINE is set" if offline else f"the Hub cannot be reached ({type(error).__name__})"
    raise WeightsError(
        f"open_weights: {name} must exist: there is no such file or folder here, the Hub's cache has no weights of "
        f"that name, and {why}."
    ) from error
