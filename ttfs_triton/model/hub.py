"""The Hugging Face Hub: files from there and to there, rights, and what goes wrong in plain words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, Unpack

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors, get_token
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  # no answer at all
from huggingface_hub.utils import validate_repo_id

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


class DownloadOptions(TypedDict, total=False):
    """Keywords of `huggingface_hub.snapshot_download` that are handed on."""

    token: str | bool | None
    cache_dir: str | Path | None
    force_download: bool
    local_files_only: bool


def download(
    repo_id: str, files: list[str], *, revision: str | None = None, **options: Unpack[DownloadOptions]
) -> Path:
    """Files of a repository, all of one commit, from the cache or the Hub.

    Args:
        repo_id: "owner/name".
        files: names, or patterns with *; those that the repository lacks are left out.
        revision: branch, tag or commit. Default: the newest of main.
        **options: see `DownloadOptions`.
    Returns:
        The folder that holds them; its name is the commit.
    Raises:
        HubError: no such repository or revision, no right to read it, or no connection and nothing in the cache.
    """
    with hub_errors("download", repo_id):
        folder = huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=files, **options)
    return Path(folder)


def check_account(repo_id: str, *, token: str | None = None) -> None:
    """Make sure that there is a valid token that may write under this owner's name. Changes nothing.

    Args:
        repo_id: "owner/name".
        token: Default: that of `hf auth login`, or HF_TOKEN.
    Raises:
        HubError: says what is wrong, and what to do.
    """
    check_name(repo_id)
    if constants.is_offline_mode():
        raise HubError("publish: the Hub must be reachable; HF_HUB_OFFLINE is set. Unset it.")
    if (token or get_token()) is None:
        raise HubError("publish: a token must be there; found none. Run `hf auth login`, or set HF_TOKEN.")
    with hub_errors("publish", repo_id):
        who = HfApi(token=token).whoami()
    _check_rights(repo_id, who)


def open_repository(repo_id: str, *, private: bool = True, token: str | None = None) -> None:
    """Make the repository unless it is there, and make sure that it may be written to and is as private as asked.

    Args:
        repo_id, token: as for `check_account`.
        private: only for its owner, and the members of an organisation, to see.
    Raises:
        HubError: the Hub forbids it, or an existing repository is of the other kind.
    """
    api = HfApi(token=token)
    with hub_errors("publish", repo_id):
        if not api.repo_exists(repo_id):
            api.create_repo(repo_id, private=private)
        api.auth_check(repo_id, write=True)
        found = api.model_info(repo_id)
    if bool(found.private) != private:
        wanted, is_now = ("private", "public") if private else ("public", "private")
        raise HubError(
            f"publish: {repo_id} must be {wanted}, as asked; it is {is_now}. "
            f"Ask for a {is_now} one to publish there as it is, or name another repository."
        )


def check_name(repo_id: str) -> None:
    """Refuse what cannot be a repository's name.

    Raises:
        HubError: it is not "owner/name".
    """
    try:
        validate_repo_id(repo_id)
        valid = REPOSITORY.fullmatch(repo_id) is not None
    except errors.HFValidationError:
        valid = False
    if not valid:
        raise HubError(f"publish: repo_id must be owner/name; got {repo_id!r}. The owner is you or an organisation.")


def _check_rights(repo_id: str, who: dict) -> None:
    access = (who.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise HubError(
            f"publish: the token must be one that may write; {access.get('displayName') or 'yours'} may only read. "
            "Make another at huggingface.co/settings/tokens."
        )
    owner, names = repo_id.partition("/")[0], [who.get("name"), *(each.get("name") for each in who.get("orgs") or ())]
    if owner not in names:
        raise HubError(
            f"publish: repo_id must belong to {' or '.join(str(name) for name in names)}; got {repo_id!r}. "
            "Use one of these owners, or the token of another account."
        )


def upload(
    files: Mapping[str, bytes],
    repo_id: str,
    *,
    stale: Iterable[str] = (),
    token: str | None = None,
    commit_message: str = "Publish model",
) -> str:
    """Send files as one commit: all of them, or no change.

    Args:
        files: contents by their names.
        repo_id: "owner/name", which exists.
        stale: names of files that the commit removes where they are there and not among `files`.
        token: Default: that of `hf auth login`, or HF_TOKEN.
        commit_message: first line of the commit.
    Returns:
        The address of the commit.
    Raises:
        HubError: the connection broke, or the Hub refused.
    """
    api = HfApi(token=token)
    with hub_errors("publish", repo_id):
        removed = sorted(set(stale) & set(api.list_repo_files(repo_id)) - set(files))
        operations = [*(CommitOperationAdd(name, content) for name, content in files.items())]
        operations += [CommitOperationDelete(name) for name in removed]
        return api.create_commit(repo_id, operations, commit_message=commit_message).commit_url
