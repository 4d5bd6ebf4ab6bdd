"""`ttfs publish`: its options."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from ttfs_triton.command_line import run_command
from ttfs_triton.shared_options import CommandOptions

CARD_CHIPS = ("lemaire45:int8", "horowitz45:int8", "anp_i", "odin", "loihi")


class PublishOptions(CommandOptions):
    """Options of `ttfs publish`: run, repository, content of the card."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run that has ended, or a folder with config.json and model.safetensors."""
    repo_id: str
    """Repository on the Hub, owner/name; created if it does not exist."""
    public: bool = False
    """Let everybody see the repository. Default: only you, and the members of your organisation, can."""
    dry_run: bool = False
    """Print the files and the card; nothing is sent, and the Hub is not asked."""
    license: str | None = None
    """Licence of the model by the Hub's short name, such as apache-2.0. Default: none is stated."""
    dataset: str | None = None
    """Hub name of the training data, if the run read them from a local folder."""
    network: str | None = None
    """FILE.py:FUNCTION that builds the network, if it is one of your own."""
    with_code: bool = False
    """Publish the file of --network, too; other files that it imports are not sent. Readers run it only if they name
    it."""
    chip: tuple[str, ...] = CARD_CHIPS
    """Chips of the energy table: names of presets, or your own TOML files."""


main = partial(run_command, PublishOptions, "ttfs_triton.hub.publish")
