"""Files from the Hub, and what goes wrong with it in plain words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  # no answer at all

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
# Errors of this machine, such as a full disk, are not among them.
_ERRORS = (
    *(errors.HFValidationError, errors.LocalTokenNotFoundError, errors.OfflineModeIsEnabled),
    *(errors.EntryNotFoundError, errors.RevisionResolutionError, errors.FileMetadataError),
    *(errors.HfHubHTTPError, HTTPError, ConnectionError, TimeoutError),
)
_TOKEN = re.compile(r"hf_\w+")


class HubError(RuntimeError):
    """The Hub cannot be reached or refuses, or there is no such repository; says what to do. Never holds a token."""


@contextmanager
def hub_errors(function: str, repo_id: str) -> Iterator[None]:
    """Within its `with` block, what goes wrong between here and the Hub becomes a `HubError` that says what to do."""
    try:
        yield
    except _ERRORS as error:
        raise HubError(f"{function}: {_reason(error, repo_id)}") from error
    except RuntimeError as error:  # around what broke the upload of a large file
        if isinstance(error, HubError) or not isinstance(error.__cause__, _ERRORS):
            raise
        raise HubError(f"{function}: {_reason(error.__cause__, repo_id)}") from error


def _reason(error: Exception, repo_id: str) -> str:
    if isinstance(error, errors.HFValidationError):
        return f"repo_id must be a valid name, owner/name; got {repo_id!r} ({error})."
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.is_offline_mode():
        return f"{repo_id} must be in the cache while HF_HUB_OFFLINE is set; it is not. Connect once, or unset it."
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"a token must be there for {repo_id}; found none. Run `hf auth login`, or set HF_TOKEN."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"revision must exist in {repo_id}; it does not. Leave it out for the newest."
    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id} must be open to your token; its owner has not let you in. Ask on its page on the Hub."
    if isinstance(error, errors.EntryNotFoundError | errors.RevisionResolutionError) and not _status(error):
        return f"{repo_id} must be in the cache or on a Hub that answers; neither is so ({_first_line(error)})."
    answers = {
        401: f"{repo_id} must be open to you and your token valid; the Hub says no. If the repository is private, "
        "run `hf auth login` with a valid token; or correct its name.",
        403: f"{repo_id} must be open to your token for this; the Hub forbids it. Use a token with the right to write "
        "there (huggingface.co/settings/tokens), or another --repo-id.",
        404: f"{repo_id} must exist on the Hub, and hold the file; there is none that you can see. Correct the name, "
        "or log in with `hf auth login` if it is private.",
    }
    return answers.get(_status(error), f"the Hub must answer for {repo_id}; {_first_line(error)}. Try again later.")


def _status(error: Exception) -> int:
    response = getattr(error, "response", None)
    return int(getattr(response, "status_code", 0) or 0)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return _TOKEN.sub("hf_…", f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__).rstrip(".")


def download(
    repo_id: str,
    files: list[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Files of a repository, all of one commit, from the cache or the Hub.

    Args:
        repo_id: "owner/name".
        files: names, or patterns with *; those that the repository lacks are left out.
        revision: branch, tag or commit. Default: the newest of main.
        token, cache_dir, force_download, local_files_only: as of `huggingface_hub.snapshot_download`.
    Returns:
        The folder that holds them; its name is the commit.
    Raises:
        HubError: no such repository or revision, no right to read it, or no connection and nothing in the cache.
    """
    with hub_errors("download", repo_id):
        folder = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=files,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
    return Path(folder)
