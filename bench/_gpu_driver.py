"""Stages of `gpu.py` as data, and what runs them: one after the other, in time, resumable."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]
LIMIT_S = 570.0
Verdict = Literal["confirmed", "refuted", "not reached"]


@dataclass(frozen=True)
class Stage:
    """One process, and what it shows if it ends well.

    Attributes:
        name: on the command line and of its log.
        statement: that is confirmed by exit status 0 and refuted by any other.
        command: arguments of this Python; "{output}" and "{data}" are replaced by folders.
        packages, programs: without which it cannot run.
        before: what is put in front of Python, say a sanitiser.
        variables: of its environment.
        limit_s: seconds after which it is ended.
        calls: how often it is started again where it ran out of time; more than 1 if it keeps what it has done.
    """

    name: str
    statement: str
    command: tuple[str, ...]
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    limit_s: float = LIMIT_S
    calls: int = 1


@dataclass
class Outcome:
    """What became of a stage.

    Attributes:
        verdict: on its statement.
        detail: the last line it printed, or why it was not reached.
        seconds: of all its calls.
        calls: that it has had.
        ended: whether it need not be run again.
    """

    verdict: Verdict = "not reached"
    detail: str = "not yet"
    seconds: float = 0.0
    calls: int = 0
    ended: bool = False


class State:
    """Outcomes by stage, in a file that is written after each call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.outcomes = {name: Outcome(**outcome) for name, outcome in values.items()}

    def of(self, stage: Stage) -> Outcome:
        return self.outcomes.setdefault(stage.name, Outcome())

    def write(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({n: asdict(o) for n, o in self.outcomes.items()}, indent=2), encoding="utf-8")
        os.replace(part, self.path)


def run_all(stages: Sequence[Stage], output: Path, data: Path | None, deadline: float) -> State:
    """Every stage that has not ended, until the deadline (of `time.monotonic`); resumable at any point."""
    output.mkdir(parents=True, exist_ok=True)
    state = State(output / "state.json")
    for stage in stages:
        outcome = state.of(stage)
        while not outcome.ended:
            if missing := missing_of(stage, data):
                outcome.detail = f"needs {', '.join(missing)}"
                break
            left = deadline - time.monotonic()
            if left < min(30.0, stage.limit_s):
                outcome.detail = "no time left"
                break
            run(stage, outcome, output, data, min(stage.limit_s, left))
            state.write()
            print(f"{stage.name}: {outcome.verdict}, {outcome.seconds:.0f} s, {outcome.detail}", flush=True)
            if not outcome.ended and stage.limit_s > left:
                break  # the deadline ended it, not its own limit
    state.write()
    return state


def missing_of(stage: Stage, data: Path | None) -> list[str]:
    """What a stage needs and does not find here."""
    missing = [f"the package {name}" for name in stage.packages if find_spec(name) is None]
    missing += [f"the program {name}" for name in stage.programs if shutil.which(name) is None]
    if data is None and any("{data}" in word for word in stage.command):
        missing.append("--data-dir")
    return missing


def run(stage: Stage, outcome: Outcome, output: Path, data: Path | None, limit_s: float) -> None:
    """One call of a stage: its output goes to its log as it comes, what became of it to `outcome`."""
    places = {"{output}": str(output), "{data}": str(data)}
    words = [sys.executable, *stage.command]
    for place, folder in places.items():
        words = [word.replace(place, folder) for word in words]
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")]
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    log = output / f"{stage.name}.log"
    outcome.calls += 1
    print(f"{stage.name}: call {outcome.calls}, at most {limit_s:.0f} s, log in {log}", flush=True)
    start = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join([*stage.before, *words])}\n")
        file.flush()
        try:
            # A session of its own, so that what it has started can be ended with it.
            process = subprocess.Popen(
                [*stage.before, *words],
                cwd=ROOT,
                env=os.environ | variables | dict(stage.variables),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            outcome.verdict, outcome.detail, outcome.ended = "not reached", str(error), True
            return
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end(process)
    outcome.seconds = round(outcome.seconds + time.monotonic() - start, 1)
    if status is None:
        outcome.verdict, outcome.detail = "not reached", f"out of time, {last_line(log)}"
        outcome.ended = outcome.calls >= stage.calls and limit_s >= stage.limit_s
        return
    outcome.verdict = "confirmed" if status == 0 else "refuted"
    outcome.detail, outcome.ended = last_line(log), True


def end(process: subprocess.Popen) -> None:
    """End a process and all that it has started; it may have ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def last_line(log: Path) -> str:
    """The last line of a log with something on it, cut to a table's width."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith("$ ")), "")[:100]


def table(stages: Sequence[Stage], state: State) -> str:
    """What was confirmed, refuted, not reached."""
    lines = []
    for verdict in ("confirmed", "refuted", "not reached"):
        chosen = [stage for stage in stages if state.of(stage).verdict == verdict]
        lines.append(f"{verdict} ({len(chosen)})")
        lines += [f"  {stage.name:<18} {stage.statement}  [{state.of(stage).detail}]" for stage in chosen]
    return "\n".join(lines)
