"""Runs that are killed, started together, damaged, and commands that are wrong: what survives.

    python bench/reliability.py

Small runs on the bundled sample are killed by SIGKILL while they write a checkpoint, and at random moments, go on by
--resume, and must end with the weights, optimizer state and metrics of a run that was left alone, bit for bit. Of three
starts at the same moment with one folder, one must go on and two be refused. Each bit of a model's config.json is
flipped, and has to be noticed. Mistakes and hostile files (`_attacks.py`) have to be told in a sentence, with the exit
code of an error, within seconds and 3 GiB, and must not change the run that is there. Runs and commands are forks of
this process, so that they cost no import of PyTorch; other than that they are what a recipe starts.
"""

import dataclasses
import hashlib
import json
import os
import random
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets.config
import torch
import tyro
from _attacks import HOSTILE, MISTAKES, TRAIN, Attack, harmless, write_data
from _record import ROOT, environment, write

from ttfs_triton.model.description import CONFIG
from ttfs_triton.model.files import read_model
from ttfs_triton.model.weights import WEIGHTS, LoadError
from ttfs_triton.train import RunFolderError, TrainConfig, train

SETTINGS = {"dataset": "sample", "model": "4C3-P2-8", "epochs": 3, "batch_size": 16, "shift": 1, "dropout": 0.1}
SETTINGS |= {"max_train_samples": 180, "max_test_samples": 40, "ema_decay": 0.9, "checkpoint_steps": 1, "cpu": True}
KILLS_A_RUN = 10
REFUSED = 3  # exit code of a start that was refused
ATTACK_SECONDS, ATTACK_BYTES = 60, 3 * 2**30


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
    attacks: str = ""
    """Only those whose name contains this."""
    seed: int = 0
    output: Path = ROOT / "bench" / "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        datasets.config.HF_DATASETS_CACHE = root / "cache"
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
            flipped(root / "reference" / "best"),
            *attacked(root / "attacks", options.attacks),
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


def flipped(folder: Path) -> dict[str, Any]:
    """Flip each bit of a model's config.json."""
    path = folder / CONFIG
    whole = path.read_bytes()
    survived = 0
    for place in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            read_model(path, folder / WEIGHTS)
        except LoadError:
            survived += 1
    path.write_bytes(whole)
    read_model(path, folder / WEIGHTS)
    tries = 8 * len(whole)
    return {"attack": "a bit of config.json flipped", "tries": tries, "survived": survived, "lost": tries - survived}


def attacked(root: Path, only: str) -> list[dict[str, Any]]:
    """Make the attacks, each in a folder of its own, and count those that were answered as they should be."""
    root.mkdir()
    os.chdir(root)
    write_data(Path("data"))
    command([*(TRAIN + "--output-dir run").split()], Path("prepared.log"), {})
    rows = []
    for name, attacks in (("mistake in a command or a folder", MISTAKES), ("hostile file", HOSTILE)):
        chosen = [attack for attack in attacks if only in attack.name]
        problems = [problem for attack in chosen if (problem := attempt(root, attack))]
        print(f"{name}: {len(chosen) - len(problems)} of {len(chosen)}", *problems, sep="\n  ", flush=True)
        survived, lost = len(chosen) - len(problems), len(problems)
        rows.append({"attack": name, "tries": len(chosen), "survived": survived, "lost": lost})
    os.chdir(ROOT)
    return rows


def attempt(root: Path, attack: Attack) -> str:
    """Make one attack; what was wrong with the answer."""
    with tempfile.TemporaryDirectory(dir=root) as name:
        for part in ("run", "data"):
            shutil.copytree(root / part, Path(name) / part)
        os.chdir(name)
        try:
            attack.prepare()
            before = hashes(Path("run"))
            code = command(attack.command.split(), Path("shown"), attack.environment)
            shown, after = Path("shown").read_text(errors="replace"), hashes(Path("run"))
        finally:
            os.chdir(root)
    problem = harmless(attack, shown, code, before, after)
    return problem and f"{attack.name}: {problem}; {shown[-2000:]}"


def command(words: list[str], log: Path, environment: dict[str, str]) -> int | None:
    """Run a recipe in a process of its own, bounded in memory; its exit code, None if it had to be killed."""
    child = os.fork()
    if not child:
        code: Any = 1
        try:
            descriptor = os.open(log, os.O_CREAT | os.O_WRONLY)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + ATTACK_BYTES, resource.RLIM_INFINITY))
            os.environ.update(environment)
            sys.argv = words
            runpy.run_path(str(ROOT / "recipes" / words[0]), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:  # what a user would see
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
    end = time.monotonic() + ATTACK_SECONDS
    while running(child) and time.monotonic() < end:
        time.sleep(0.01)
    hung = running(child)
    if hung:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return None if hung else os.waitstatus_to_exitcode(status)


def hashes(folder: Path) -> dict[str, str]:
    """Of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


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
