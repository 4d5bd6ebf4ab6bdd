"""Scripts in processes of their own that need not import PyTorch first: each is forked from one that has.

Most of a small run's time goes into that. Where processes are killed, and where there are several, they are started as
users start them.
"""

import os
import runpy
import subprocess
import sys
from multiprocessing import get_context, set_start_method
from pathlib import Path
from tempfile import TemporaryDirectory

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["tests.train.imports"])


def run_script(words: list[str], environment: dict[str, str], *, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, as `subprocess.run` does with captured text; words: its path, then its arguments."""
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        process = SERVER.Process(target=_run, args=(words, environment, files))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, timeout)
        return subprocess.CompletedProcess(words, process.exitcode, *(file.read_text() for file in files))


def _run(words: list[str], environment: dict[str, str], files: list[Path]) -> None:
    from datasets import config

    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    config.HF_DATASETS_CACHE = Path(environment["HF_DATASETS_CACHE"])  # was read when it was imported
    set_start_method(None, force=True)  # of worker processes: again the system's own, not the one of this process
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")
