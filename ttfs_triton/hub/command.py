"""The command line of `recipes/publish.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import BaseModel, ConfigDict

from ttfs_triton.command_line import run_command
from ttfs_triton.hub.card import CARD_CHIPS, Package
from ttfs_triton.hub.publish import publish


class PublishOptions(BaseModel):
    """Which run, and where to. Positional: the run's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run that has ended, or one with config.json and model.safetensors."""
    repo_id: str
    """owner/name on the Hub; made if need be."""
    public: bool = False
    """Let everybody see it. Default: only you, and the members of your organisation, can."""
    dry_run: bool = False
    """Show the files and the card; nothing is sent, nobody is asked."""
    license: str | None = None
    """Licence of the model by the Hub's short name, such as apache-2.0. Default: none is stated."""
    dataset: str | None = None
    """What it was trained on (a Hub name), where the run knows a local folder only."""
    network: str | None = None
    """FILE.py:FUNCTION that builds the network, if code of yours does. The code itself is not published."""
    evaluation: Path | None = None
    """Folder that recipes/evaluate.py --output-dir wrote; its figures replace those of training."""
    chip: tuple[str, ...] = CARD_CHIPS
    """Chips of the energy table: names of presets, or TOML files of yours."""
    commit_message: str = "Publish model"
    """First line of the commit."""


def run(options: PublishOptions) -> None:
    """Check rights, make the files, show them, send them unless it is a dry run.

    Raises:
        HubError, LoadError, ValueError: as `publish` does.
    """

    def show(package: Package) -> None:
        for name, size, sha256 in package.rows():
            print(f"{sha256}  {size:>12,} bytes  {name}")

    values = options.model_dump(exclude={"public", "chip"})
    found = publish(**values, private=not options.public, chips=options.chip, show=show)
    if options.dry_run:
        print(f"{found.package.card}\ndry run: nothing was sent to {options.repo_id}")
    else:
        print(f"published {'for everybody' if options.public else 'privately'}: {found.url}")


main = partial(run_command, PublishOptions, run, prog="publish.py")
