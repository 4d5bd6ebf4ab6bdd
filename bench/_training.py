"""Whole training runs of recipes: started, gone on with, or taken as they are if they have ended."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _record import ROOT, commit


def train(recipe: str, flags: Sequence[str], folder: Path, data_dir: Path | None, threads: int | None) -> None:
    """Train unless that has been done; output goes to FOLDER.log, the commit at which it began to FOLDER.commit.

    Args:
        recipe: name without ".py".
        flags: of the recipe.
        folder: of the run.
        data_dir: local folder of the data set, or None for the Hub.
        threads: CPU threads, or None for all.
    Raises:
        subprocess.CalledProcessError: training failed; the log says why.
    """
    if (folder / "summary.json").is_file():
        return
    command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), "--output-dir", str(folder), *flags]
    if data_dir is not None:
        command += ["--data-dir", str(data_dir)]
    if (folder / "config.yaml").is_file():
        command.append("--resume")
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.with_name(f"{folder.name}.commit").write_text(commit())
    limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    log = folder.with_name(f"{folder.name}.log")
    print(f"{folder.name}: training, log in {log}", flush=True)
    with log.open("a") as output:
        subprocess.run(command, check=True, stdout=output, stderr=subprocess.STDOUT, env=os.environ | limit)


def read_run(folder: Path) -> dict[str, Any] | None:
    """The summary of a run that has ended, with the commit at which it began; else None."""
    summary = read_summary(folder)
    return summary and summary | {"commit": folder.with_name(f"{folder.name}.commit").read_text()}


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a run that has ended, else None."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else None
