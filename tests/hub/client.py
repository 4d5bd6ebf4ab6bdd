"""A process that uses a Hub: huggingface_hub reads HF_ENDPOINT, HF_HUB_OFFLINE and the like when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Runs what comes as a line of JSON, answers with what it printed or raised. Retries would only cost time here.
LOOP = """
import contextlib, io, json, sys, time
time.sleep = lambda seconds: None
names = {}
for line in sys.stdin:
    printed, raised = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            exec(json.loads(line), names)
    except (Exception, SystemExit) as error:
        raised = [type(error).__name__, str(error)]
    print(json.dumps([printed.getvalue(), raised]), flush=True)
"""


def environment(endpoint: str, home: Path, **changes: str) -> dict[str, str]:
    """Of a process that knows no Hub but ours, with a cache of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return kept | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
        **changes,
    }


class Raised(Exception):
    """What the code in the other process raised, as "Type: message"."""


class Client:
    """Runs code in one process of its own, which keeps its variables."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOP], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, code: str) -> str:
        """What the code printed.

        Raises:
            Raised: what it raised, after what it printed.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        printed, raised = json.loads(self.process.stdout.readline())
        if raised is not None:
            raise Raised(f"{printed}{raised[0]}: {raised[1]}")
        return printed

    def close(self) -> None:
        self.process.communicate(timeout=30)
