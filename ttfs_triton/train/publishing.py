"""Publishing at the end of a run: rights are found out before it starts, and a failure then costs nothing of it."""

import shlex
import sys
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from ttfs_triton.hub.account import check_account, open_repository
from ttfs_triton.hub.publish import publish
from ttfs_triton.model import HubError
from ttfs_triton.scoring.processes import ask_main_process
from ttfs_triton.train.config import ConfigError, TrainConfig
from ttfs_triton.train.display import Display


def check_account_of(config: TrainConfig, accelerator: Accelerator) -> None:
    """Before data are loaded: token and name. Changes nothing; the main process alone asks the Hub.

    Raises:
        ConfigError: in all processes; says what is wrong.
    """
    _ask(config, accelerator, partial(check_account, str(config.hub_repo_id)))


def open_repository_of(config: TrainConfig, accelerator: Accelerator) -> None:
    """Before training: the repository is there, may be written to, and is as private as asked.

    Raises:
        ConfigError: in all processes; says what is wrong.
    """
    _ask(config, accelerator, partial(open_repository, str(config.hub_repo_id), private=config.hub_private))


def _ask(config: TrainConfig, accelerator: Accelerator, check: "partial[None]") -> None:
    if not config.push_to_hub:
        return
    try:
        ask_main_process(accelerator, check, HubError)
    except HubError as error:
        raise ConfigError(f"push_to_hub: {error}") from error


def publish_run(config: TrainConfig, run: Path, accelerator: Accelerator, display: Display) -> None:
    """Publish a run that has ended, if asked for. If that fails, say how to do it by hand; the run has succeeded."""
    if not (config.push_to_hub and accelerator.is_main_process):
        return
    repo_id = str(config.hub_repo_id)
    try:
        found = publish(run, repo_id, private=config.hub_private, license=config.hub_license)
    except Exception as error:  # whatever it is, training must not seem to have failed
        words = ["python", "recipes/publish.py", str(run), "--repo-id", repo_id]
        words += ["--public"] if not config.hub_private else []
        words += ["--license", config.hub_license] if config.hub_license else []
        message = f"warning: the run is complete, but it was not published. {error}\nPublish it by: {shlex.join(words)}"
        print(message, file=sys.stderr)
        return
    display.say(f"published                {found.url}")
