"""Where and when a benchmark ran, and files that say so."""

import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ttfs_triton.scoring.machine import processor_name

ROOT = Path(__file__).parents[1]


def machine(device: torch.device) -> str:
    """Name of the GPU, or of the CPU with its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def environment(device: torch.device) -> dict[str, Any]:
    """Command, commit, date, machine, threads and versions."""
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *portable(sys.argv[1:])]),
        "commit": commit(),
        "utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "device": machine(device),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
    }


def portable(arguments: Sequence[str]) -> list[str]:
    """A command line without what is true of one machine only: where results went, and folders above what was read."""
    words: list[str] = []
    skip = False
    for word in arguments:
        if not skip and word.partition("=")[0] != "--output":
            words.append(Path(word).name if os.path.isabs(word) else word)
        skip = word == "--output"
    return words


def commit() -> str:
    """Commit of this checkout, with a plus sign if it has been changed; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty=+"]
    try:
        revision = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return revision.stdout.strip()


def write(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> Path:
    """Write NAME.csv: a line "# key: value" for each circumstance, then the rows; replaces an earlier file.

    Args:
        folder: is made if it does not exist.
        name: of the file, without ending.
        rows: at least one; a column that a row lacks stays empty.
        about: how the rows came about; None is left out, what is no text is JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        for key, value in about.items():
            if value is not None:
                file.write(f"# {key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n")
        columns = dict.fromkeys(key for row in rows for key in row)
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {path}")
    return path


def read(path: Path) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Rows and circumstances of a file that `write` made; none of both if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    about = [line for line in lines if line.startswith("# ")]
    found = (line.removeprefix("# ").rstrip("\n").partition(": ") for line in about)
    return list(csv.DictReader(lines[len(about) :])), {key: value for key, _, value in found}
