"""From a run to a repository on the Hub: checks before work, one commit, nothing local touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ttfs_triton.hub.card import ALLOWED, Package, make_package
from ttfs_triton.hub.energy import CARD_CHIPS
from ttfs_triton.hub.facts import read_facts
from ttfs_triton.model.hub import HubError, check_account, check_name, open_repository, upload
from ttfs_triton.model.locate import find_model


@dataclass(frozen=True)
class Published:
    """What was published, or would be.

    Attributes:
        package: the files.
        url: of the commit, or None after a dry run.
        unsigned: the run does not say which weights its figures are of.
    """

    package: Package
    url: str | None
    unsigned: bool = False


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
    show: Callable[[Package], None] = lambda package: None,
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
        show: told the files before they are sent.
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
    show(package)
    if dry_run:
        return Published(package, None, facts.unsigned)
    open_repository(repo_id, private=private, token=token)
    try:
        url = upload(package.files, repo_id, stale=ALLOWED, token=token, commit_message=commit_message)
    except HubError as error:
        raise HubError(f"{error}\nNothing has changed in {repo_id}; {run} is as it was. Publish it again.") from error
    return Published(package, url, facts.unsigned)
