"""Runs that are killed, and started together: what survives.

    python bench/reliability.py

Small runs on the bundled sample are killed by SIGKILL while they write a checkpoint, and at random moments, go on by
--resume, and must end with the weights, optimizer state and metrics of a run that was left alone, bit for bit. Of three
starts at the same moment with one folder, one must go on and two be refused. Runs are forks of this process, so that a
kill costs no import of PyTorch; other than that they are what a recipe starts.
"""

import dataclasses
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from _record import ROOT, environment, write

from ttfs_triton.train import RunFolderError, TrainConfig, train

SETTINGS = {"dataset": "sample", "model": "4C3-P2-8", "epochs": 3, "batch_size": 16, "shift": 1, "dropout": 0.1}
SETTINGS |= {"max_train_samples": 180, "max_test_samples": 40, "ema_decay": 0.9, "checkpoint_steps": 1, "cpu": True}
KILLS_A_RUN = 10
REFUSED = 3  # exit code of a start that was refused


@dataclasses.dataclass
class Options:
    """Numbers of attacks."""

    save_kills: int = 100
    """SIGKILLs while a checkpoint is written: its unfinished folder is there afterwards."""
    random_kills: int = 50
    """SIGKILLs at a moment drawn from a quarter of a run's length, counted from each start: reading, building,
    training, scoring."""
    triples: int = 20
    """Of starts at the same moment."""
    seed: int = 0
    output: Path = ROOT / "bench" / "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        finish(root / "reference")
        wanted = content(root / "reference")
        if not wanted:
            sys.exit(f"reliability: an undisturbed run must end; got {(root / 'reference.log').read_text()}")
        began = time.monotonic()
        finish(root / "timed")  # the first one fills caches
        seconds = (time.monotonic() - began) / 4

        def in_save(run: Path, child: int) -> None:
            while not unfinished(run) and running(child):
                pass

        def at_random(run: Path, child: int) -> None:
            time.sleep(chance.uniform(0, seconds))

        rows = [
            killed("SIGKILL during a save", options.save_kills, root / "save", in_save, unfinished, wanted),
            killed("SIGKILL at a random moment", options.random_kills, root / "random", at_random, None, wanted),
            together(options.triples, root / "together"),
        ]
    about = environment(torch.device("cpu"))
    columns = {key: about[key] for key in ("device", "torch", "commit", "utc", "command")}
    write(options.output, "reliability", [row | columns for row in rows], about)
    sys.exit(any(row["lost"] for row in rows))


def killed(
    attack: str,
    kills: int,
    root: Path,
    wait: Callable[[Path, int], None],
    counts: Callable[[Path], bool] | None,
    wanted: dict[str, Any],
) -> dict[str, Any]:
    """Kill runs, some times each, let them end, and compare.

    Args:
        attack: name of the row.
        kills: in all.
        root: of the runs' folders.
        wait: for the moment to kill a run's process.
        counts: whether a kill hit what it was meant to. None: every one does.
        wanted: content of an undisturbed run.
    """
    survived = lost = number = 0
    while survived + lost < kills:
        run, hits = root / str(number), 0
        number += 1
        for _ in range(KILLS_A_RUN):
            if survived + lost + hits == kills:
                break
            child = start(run)
            wait(run, child)
            os.kill(child, signal.SIGKILL)
            was_killed = os.waitpid(child, 0)[1] == signal.SIGKILL
            hits += was_killed and (counts is None or counts(run))
            if not was_killed:  # the run was at its end
                break
        same = finish(run) == 0 and content(run) == wanted
        survived, lost = survived + hits * same, lost + hits * (not same)
        print(f"{attack}: {survived} survived, {lost} lost", flush=True)
    return {"attack": attack, "tries": survived + lost, "survived": survived, "lost": lost}


def together(triples: int, root: Path) -> dict[str, Any]:
    """Three starts of different seeds with one folder: one goes on, two are refused, and files are those of the one."""
    survived = 0
    for number in range(triples):
        run = root / str(number)
        children = [start(run, seed=seed) for seed in range(3)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        right = sorted(codes) == [0, REFUSED, REFUSED]
        survived += right and json.loads((run / "summary.json").read_text())["seed"] == codes.index(0)
        print(f"three starts at once: {survived} of {number + 1}", flush=True)
    lost = triples - survived
    return {"attack": "three starts at once", "tries": triples, "survived": survived, "lost": lost}


def start(run: Path, seed: int = 0) -> int:
    """Start a run, or go on with it, in a process of its own; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run.parent.mkdir(exist_ok=True)
        with open(run.with_suffix(".log"), "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        resume = (run / "config.yaml").is_file()
        train(TrainConfig.model_validate(SETTINGS | {"output_dir": run, "seed": seed, "resume": resume}))
        code = 0
    except RunFolderError:
        code = REFUSED
    finally:
        os._exit(code)


def finish(run: Path) -> int:
    """Let a run end; its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(start(run), 0)[1])


def running(child: int) -> bool:
    """Whether a process has not ended."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def unfinished(run: Path) -> bool:
    """Whether a checkpoint is being written, or was when its process died."""
    checkpoints = run / "checkpoints"
    return checkpoints.is_dir() and any(".partial-" in entry.name for entry in os.scandir(checkpoints))


def content(run: Path) -> dict[str, Any]:
    """What a run leads to: hashes of its weights and last state, and its metrics but for the clock's share."""
    newest = max((run / "checkpoints").glob("step-*"), default=None)
    if newest is None or not (run / "summary.json").is_file():
        return {}
    files = [run / "best" / "model.safetensors", *sorted(newest.glob("*.safetensors"))]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["images_per_second"]
    hashes = {file.relative_to(run).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return hashes | {"metrics": lines}


if __name__ == "__main__":
    main()
