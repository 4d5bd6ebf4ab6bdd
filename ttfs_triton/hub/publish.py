"""From a run to a repository on the Hub: checks before work, one commit, nothing local touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from torch import nn

from ttfs_triton.hub.account import check_account, check_name, open_repository
from ttfs_triton.hub.card import ALLOWED, Package, make_package
from ttfs_triton.hub.facts import ModelFacts, read_facts
from ttfs_triton.model.download import hub_errors
from ttfs_triton.model.locate import find_model
from ttfs_triton.model.model import TTFSModel
from ttfs_triton.report.energy_tables import CARD_CHIPS


@dataclass(frozen=True)
class Published:
    """What was published, or would be.

    Attributes:
        package: the files.
        url: of the commit, or None after a dry run.
    """

    package: Package
    url: str | None


def publish(
    run: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    dry_run: bool = False,
    evaluation: Path | None = None,
    dataset: str | None = None,
    network: str | nn.Module | None = None,
    license: str | None = None,
    chips: Sequence[str] = CARD_CHIPS,
    token: str | None = None,
    commit_message: str = "Publish model",
) -> Published:
    """Publish the best weights of a run, in one commit.

    Args:
        run: folder of a run that has ended, or of a model (config.json and model.safetensors).
        repo_id: "owner/name"; made if need be.
        private: only for you, and the members of your organisation, to see.
        dry_run: make the files, and talk to nobody.
        evaluation: folder that `recipes/evaluate.py --output-dir` wrote; its figures replace those of training.
        dataset: Hub name of what it was trained on, where the run knows a local folder only.
        network: or "file.py:function" that builds it, if code of yours does; the code is not published.
        license: of the model, by the Hub's short name, such as "apache-2.0"; None states none.
        chips: for the energy table.
        token: Default: that of `hf auth login`, or HF_TOKEN.
        commit_message: first line of the commit.
    Raises:
        HubError: no token, no right to write there, a repository of another visibility, or no connection.
        LoadError, ValueError: files or options that cannot be published; nothing has been sent.
    """
    check_name(repo_id)
    if not dry_run:
        check_account(repo_id, token=token)
    files = find_model(Path(run))
    facts = read_facts(files, evaluation=evaluation, dataset=dataset, network=network)
    package = make_package(facts, repo_id, license=license, chips=chips)
    if dry_run:
        return Published(package, None)
    open_repository(repo_id, private=private, token=token)
    return Published(package, upload(package, repo_id, token=token, commit_message=commit_message))


def publish_model(
    model: TTFSModel, repo_id: str, *, private: bool, token: str | None, license: str | None, commit_message: str
) -> str:
    """`TTFSModel.push_to_hub`; returns the address of the commit."""
    check_account(repo_id, token=token)
    open_repository(repo_id, private=private, token=token)
    package = make_package(ModelFacts(model), repo_id, license=license)
    return upload(package, repo_id, token=token, commit_message=commit_message)


def upload(package: Package, repo_id: str, *, token: str | None = None, commit_message: str = "Publish model") -> str:
    """Send files as one commit: all of them, or no change. Files of ours that are out of date are removed by it.

    Returns:
        The address of the commit.
    Raises:
        HubError: the connection broke, or the Hub refused.
    """
    api = HfApi(token=token)
    with hub_errors("publish", repo_id):
        stale = {name for name in api.list_repo_files(repo_id) if name in ALLOWED} - set(package.files)
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in package.files.items()),
                *(CommitOperationDelete(name) for name in sorted(stale)),
            ],
            commit_message=commit_message,
        )
    return commit.commit_url
