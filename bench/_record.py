"""Where and when a benchmark ran, and files that say so."""

import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
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
    """Machine, threads, versions, commit, date and command."""
    return {
        "device": machine(device),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "commit": commit(),
        "utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *portable(sys.argv[1:])]),
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


def write(folder: Path, name: str, rows: list[dict[str, Any]], about: dict[str, Any]) -> list[Path]:
    """NAME.csv with the rows, NAME.json with everything; both replace what an earlier call wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    table, document = folder / f"{name}.csv", folder / f"{name}.json"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    document.write_text(json.dumps(about | {"rows": rows}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [table, document]
