"""Whether this user may publish there: found out before any work."""

from __future__ import annotations

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ttfs_triton.model.download import REPOSITORY, HubError, hub_errors


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
    except HFValidationError:
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
