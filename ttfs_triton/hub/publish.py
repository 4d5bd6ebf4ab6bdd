"""`ttfs publish`: publishes a run on the Hub in one commit, after checks. Local files stay as they are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from ttfs_triton.commands import CARD_CHIPS, PublishOptions
from ttfs_triton.hub.card import ALLOWED, make_files
from ttfs_triton.hub.facts import read_facts
from ttfs_triton.model.files import find_model
from ttfs_triton.model.hub import HubError, check_account, check_name, open_repository, upload
from ttfs_triton.model.own_network import file_and_function


def publish(
    run: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    dry_run: bool = False,
    dataset: str | None = None,
    network: str | nn.Module | None = None,
    with_code: bool = False,
    license: str | None = None,
    chips: Sequence[str] = CARD_CHIPS,
    token: str | None = None,
) -> tuple[dict[str, bytes], str | None]:
    """Publish the best weights of a run, in one commit; see `PublishOptions`.

    Args:
        network: a network of your own, or "file.py:function" that builds it.
        token: access token. Default: the token of `hf auth login`, or HF_TOKEN.
    Returns:
        Contents of the published files by name, and the address of their commit; None after a dry run.
    """
    check_name(repo_id)
    code = _code_file(network) if with_code else None
    if not dry_run:
        check_account(repo_id, token=token)
    facts = replace(read_facts(find_model(Path(run)), dataset=dataset, network=network), code=code)
    files = make_files(facts, repo_id, license=license, chips=chips)
    if dry_run:
        return files, None
    open_repository(repo_id, private=private, token=token)
    try:
        url = upload(files, repo_id, stale=ALLOWED, token=token)
    except HubError as error:
        raise HubError(f"{error}\nNothing has changed in {repo_id}; {run} is as it was. Publish it again.") from error
    return files, url


def _code_file(network: str | nn.Module | None) -> Path:
    """The file in "file.py:function"; ValueError if a repository cannot have its name."""
    if not isinstance(network, str):
        raise ValueError(
            f"publish: with_code must go with network, FILE.py:FUNCTION; got {network!r:.80}. "
            "Name the file whose code others may read and run."
        )
    path, _ = file_and_function(network)
    if not re.fullmatch(r"\w[\w-]*\.py", path.name, re.ASCII):
        raise ValueError(f"publish: network must be a file of a plain name; got {path.name!r}. Rename it.")
    return path


def run(options: PublishOptions) -> None:
    """Publish a run, and print the files with their hashes; after a dry run, the card too."""
    values = options.model_dump(exclude={"public", "chip"})
    files, url = publish(**values, private=not options.public, chips=options.chip)
    for name, content in files.items():
        print(f"{hashlib.sha256(content).hexdigest()}  {len(content):>12,} bytes  {name}")
    if options.dry_run:
        print(f"{files['README.md'].decode()}\ndry run: nothing was sent to {options.repo_id}")
    else:
        print(f"published {'for everybody' if options.public else 'privately'}: {url}")
