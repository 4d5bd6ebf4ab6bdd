"""Run everything that has to be tested on a GPU, in stages.

    make gpu                                   # all stages, in the environment that the Makefile creates
    make gpu VENV= ARGS="--minutes 9"          # this machine's Python; stops in time, the next call resumes
    python bench/gpu.py smoke kernels          # only these stages, even if they have ended
    python bench/gpu.py --list

A stage (gpu.toml) tests one statement; the table at the end says whether the statement was confirmed, refuted, or not
reached. The exit status is 1 if a statement was refuted, 2 if none was refuted but some were not reached. A stage that
fails or takes too long does not stop the next. Stages that have ended are listed in a state file and not run again; one
that --minutes cut short runs again in the next call. The output of a stage goes to a log beside the state file as it
comes. Nothing is downloaded or installed: a stage whose packages or programs are missing says so and is left out.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CONFIRMED, REFUTED, NOT_REACHED = "confirmed", "refuted", "not reached"


@dataclass(frozen=True)
class Stage:
    """One process, and the statement that it confirms if it succeeds; see gpu.toml."""

    name: str
    statement: str
    command: str
    packages: Sequence[str] = ()
    programs: Sequence[str] = ()
    before: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    limit_s: float = 570.0

    def missing(self, data: Path | None) -> list[str]:
        """Names of packages, programs and options that the stage needs and that are missing."""
        missing = [f"the package {name}" for name in self.packages if find_spec(name) is None]
        missing += [f"the program {name}" for name in self.programs if shutil.which(name) is None]
        return missing + (["--data-dir"] if data is None and "{data}" in self.command else [])


class Outcome(NamedTuple):
    """Result of a stage: the verdict on its statement, and the last line it printed or why it was not reached."""

    verdict: str
    detail: str
    ended: bool = False


def read_stages() -> list[Stage]:
    text = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    return [Stage(name, **values) for name, values in tomllib.loads(text).items()]


def main(words: Sequence[str] | None = None, stages: Sequence[Stage] | None = None) -> int:
    """Run the stages; returns the exit status."""
    start = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # exits through `run`, which ends the stage
    stages = read_stages() if stages is None else stages
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="run only these stages, even if they have ended")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop in time; the next call resumes")
    parser.add_argument("--data-dir", type=Path, help="local folder of CIFAR-10, for the stage that trains on it")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu", help="folder of state, logs and results")
    parser.add_argument("--list", action="store_true", help="list the stages and exit")
    options = parser.parse_args(words)
    if options.list:
        print("\n".join(f"{stage.name:<18} {stage.statement}" for stage in stages))
        return 0
    if unknown := set(options.stages) - {stage.name for stage in stages}:
        parser.error(f"STAGE must be one that --list prints; got {', '.join(sorted(unknown))}")
    chosen = [stage for stage in stages if stage.name in options.stages or not options.stages]
    deadline = start + 60 * options.minutes
    outcomes = run_all(chosen, options.output.resolve(), options.data_dir, deadline, again=options.stages)
    lines = []
    for verdict in (CONFIRMED, REFUTED, NOT_REACHED):
        some = [stage for stage in chosen if outcomes[stage.name].verdict == verdict]
        lines.append(f"{verdict} ({len(some)})")
        lines += [f"  {stage.name:<18} {stage.statement}  [{outcomes[stage.name].detail}]" for stage in some]
    print(report := "\n".join(lines))
    (options.output / "summary.txt").write_text(report + "\n", encoding="utf-8")
    verdicts = {outcomes[stage.name].verdict for stage in chosen}
    return 1 if REFUTED in verdicts else 2 if NOT_REACHED in verdicts else 0


def run_all(
    stages: Sequence[Stage], output: Path, data: Path | None, deadline: float, *, again: Sequence[str] = ()
) -> dict[str, Outcome]:
    """Run every stage that has not ended, until the deadline (of `time.monotonic`); can be resumed at any point."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / "state.json"
    state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    outcomes = {name: Outcome(*outcome) for name, outcome in state.items() if name not in again}
    for stage in stages:
        left = deadline - time.monotonic()
        if stage.name in outcomes and outcomes[stage.name].ended:
            continue
        if missing := stage.missing(data):
            outcomes[stage.name] = Outcome(NOT_REACHED, f"needs {', '.join(missing)}")
        elif left < min(30.0, stage.limit_s):
            outcomes[stage.name] = Outcome(NOT_REACHED, "no time left")
        else:
            outcome = outcomes[stage.name] = run(stage, output, data, left)
            print(f"{stage.name}: {outcome.verdict}, {outcome.detail}", flush=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(outcomes, indent=2), encoding="utf-8")
        os.replace(part, path)
    return outcomes


def run(stage: Stage, output: Path, data: Path | None, left_s: float) -> Outcome:
    """Run a stage for at most its limit and at most `left_s`; its output goes to its log as it comes."""
    places = {"output": output, "data": data and data.resolve()}
    words = [*stage.before.split(), sys.executable, *(word.format(**places) for word in stage.command.split())]
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")]
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"} | stage.variables
    log = output / f"{stage.name}.log"
    print(f"{stage.name}: at most {min(stage.limit_s, left_s):.0f} s, log in {log}", flush=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(words)}\n")
        file.flush()
        # A new session, so that `end` also ends the processes that this one has started.
        streams = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(words, cwd=ROOT, env=os.environ | variables, **streams)
        status: int | None = None
        try:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(min(stage.limit_s, left_s))
        finally:
            end(process)
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line and not line.startswith("$ ")), "")[:100]
    if status is None:
        return Outcome(NOT_REACHED, f"out of time, {last}", ended=stage.limit_s <= left_s)
    return Outcome(REFUTED if status else CONFIRMED, last, ended=True)


def end(process: subprocess.Popen) -> None:
    """End a process and all processes that it has started; it may have ended already."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(10)


if __name__ == "__main__":
    sys.exit(main())
