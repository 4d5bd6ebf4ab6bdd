"""Downloads from the Hugging Face Hub, uploads to it, and errors in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors, get_token
from huggingface_hub.utils import _http, set_client_factory, validate_repo_id

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_TOKEN = re.compile(r"hf_[0-9A-Za-z]{12,}")  # not hf_transfer, which a remedy may name
Answer = TypeVar("Answer")


class HubError(RuntimeError):
    """The Hub cannot be reached, or refuses, or lacks the repository. The message says what to do, without a token."""


def _reason(error: BaseException, repo_id: str) -> str:
    if isinstance(error, errors.HFValidationError):
        return f"repo_id must be a valid name, owner/name; got {repo_id!r} ({error})."
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.is_offline_mode():
        return f"{repo_id} must be in the cache while HF_HUB_OFFLINE is set; it is not. Connect once, or unset it."
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"a token must be there for {repo_id}; got none. Run `hf auth login`, or set HF_TOKEN."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"revision must exist in {repo_id}; it does not. Leave it out for the newest."
    if isinstance(error, errors.GatedRepoError):
        return f"access to {repo_id} must be granted to your account; it is not. Request it on its page on the Hub."
    if isinstance(error, errors.EntryNotFoundError | errors.RevisionResolutionError) and not _status(error):
        return f"{repo_id} must be in the cache or on a Hub that answers; neither is so ({_first_line(error)})."
    answers = {
        401: f"{repo_id} must be readable, and your token valid; the Hub refused access. If the repository is private, "
        "run `hf auth login` with a valid token; or correct its name.",
        403: f"your token must have access to {repo_id} for this; the Hub refused it. Use a token that may write "
        "there (huggingface.co/settings/tokens), or a repository of yours.",
        404: f"{repo_id} must exist on the Hub, and hold the file; there is none that you can see. Correct the name, "
        "or log in with `hf auth login` if it is private.",
        412: f"{repo_id} must stay as it is during an upload; somebody else has published there meanwhile. Look at it.",
    }
    return answers.get(_status(error), f"the Hub must answer for {repo_id}; {_first_line(error)}. Try again later.")


def _status(error: BaseException) -> int:
    response = getattr(error, "response", None)
    return int(getattr(response, "status_code", 0) or 0)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    return _TOKEN.sub("hf_…", text).rstrip(".")


def _ask(function: str, repo_id: str, call: Callable[[], Answer]) -> Answer:
    """The result of a call to huggingface_hub; `function` and `repo_id` are names for messages."""
    _check_answers()
    try:
        return call()
    except (HubError, MemoryError):
        raise
    except Exception as error:  # of any kind: answers may be malformed
        # The upload of a large file wraps its error in another.
        cause = error.__cause__ if isinstance(error.__cause__, errors.HfHubHTTPError | OSError) else error
        if isinstance(cause, OSError) and cause.errno and not isinstance(cause, ConnectionError | TimeoutError):
            raise
        raise HubError(f"{function}: {_reason(cause, repo_id)}") from error


_factories: list[Callable[[], Any]] = []  # factories of HTTP clients that check answers


def _check_answers() -> None:
    """Add `_check_etag` to huggingface_hub's HTTP client, or to the client that the program has set."""
    original = _http._GLOBAL_CLIENT_FACTORY
    if original in _factories:
        return

    def factory() -> Any:
        client = original()
        hooks = client.event_hooks
        client.event_hooks = hooks | {"response": [*hooks.get("response", ()), _check_etag]}
        return client

    _factories.append(factory)
    set_client_factory(factory)


def _check_etag(response: Any) -> None:
    """Refuse an ETag that leads out of the cache: huggingface_hub (up to 2.4) takes it for a file name, unchecked."""
    etag = response.headers.get("X-Linked-Etag") or response.headers.get("ETag") or ""
    if response.request.method == "HEAD" and re.search(r"[/\\]", etag.lstrip("W/")):
        raise HubError(f"download: ETag of the Hub's answer must be a plain name; got {etag!r:.80}. Do not trust it.")


def download(repo_id: str, files: list[str], *, revision: str | None = None, **options: Any) -> Path:
    """The folder with a repository's files, from the cache or the Hub. Its name is the files' commit.

    `files` are names, or patterns with *; files that the repository lacks are left out. Default of `revision`: the
    newest commit of main. Other options are those of `huggingface_hub.snapshot_download`.
    """
    call = partial(huggingface_hub.snapshot_download, repo_id, revision=revision, allow_patterns=files, **options)
    return Path(_ask("download", repo_id, call))


def check_account(repo_id: str, *, token: str | None = None) -> None:
    """Raise HubError unless `repo_id` is "owner/name" and there is a token. Default: that of `hf auth login`."""
    check_name(repo_id)
    if constants.is_offline_mode():
        raise HubError("publish: the Hub must be reachable; HF_HUB_OFFLINE is set. Unset it.")
    if (token or get_token()) is None:
        raise HubError("publish: a token must be there; got none. Run `hf auth login`, or set HF_TOKEN.")


def open_repository(repo_id: str, *, private: bool = True, token: str | None = None) -> None:
    """Create a repository if needed; HubError unless the token may write there and it is private or public as asked."""
    api = HfApi(token=token)

    def call() -> huggingface_hub.ModelInfo:
        if not api.repo_exists(repo_id):
            api.create_repo(repo_id, private=private)
        api.auth_check(repo_id, write=True)
        return api.model_info(repo_id)

    repository = _ask("publish", repo_id, call)
    if bool(repository.private) != private:
        wanted, is_now = ("private", "public") if private else ("public", "private")
        raise HubError(
            f"publish: {repo_id} must be {wanted}, as asked; it is {is_now}. "
            f"Ask for a {is_now} repository to publish there as it is, or name another one."
        )


def check_name(repo_id: str) -> None:
    """Raise HubError unless `repo_id` is "owner/name"."""
    try:
        validate_repo_id(repo_id)
        valid = REPOSITORY.fullmatch(repo_id) is not None
    except errors.HFValidationError:
        valid = False
    if not valid:
        raise HubError(f"publish: repo_id must be owner/name; got {repo_id!r}. The owner is you or an organisation.")


def upload(
    files: Mapping[str, bytes],
    repo_id: str,
    *,
    stale: Iterable[str] = (),
    token: str | None = None,
    commit_message: str = "Publish model",
) -> str:
    """Upload files, given as contents by name, in one commit, all or none; returns the commit's address.

    The commit removes those `stale` files that exist and are not among `files`.
    """
    api = HfApi(token=token)

    def call() -> str:
        repository = api.model_info(repo_id)
        removed = sorted(set(stale) & {file.rfilename for file in repository.siblings or ()} - set(files))
        operations = [*(CommitOperationAdd(name, content) for name, content in files.items())]
        operations += [CommitOperationDelete(name) for name in removed]
        # A commit leaves out files that have not changed. On another parent, these would be another publisher's.
        done = api.create_commit(repo_id, operations, commit_message=commit_message, parent_commit=repository.sha)
        return done.commit_url

    return _ask("publish", repo_id, call)
