"""`make gpu` with made-up stages: a failure stops no later stage, no verdict is lost, no stage runs twice."""

import json
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.bench.modules import BENCH, modules

gpu, gpu_work = modules("gpu", "_gpu_work")

ROOT = BENCH.parent
WAIT = "import time; print('begun', flush=True); time.sleep(60)"


def stage(path: Path, name: str, code: str, **options) -> "gpu.Stage":
    """A stage that runs some code."""
    script = path / f"{name}.py"
    script.write_text(code, encoding="utf-8")
    return gpu.Stage(name, f"{name} works", f"{script} {options.pop('arguments', '')}", **options)


def run(output: Path, *stages: "gpu.Stage", options: tuple[str, ...] = ()) -> tuple[int, dict]:
    """Exit status, and by stage its verdict, detail and whether it has ended."""
    status = gpu.main(["--output", str(output), *options], stages)
    return status, json.loads((output / "state.json").read_text(encoding="utf-8"))


def test_every_stage_gets_a_verdict(tmp_path, capsys):
    """A failure, a timeout, which ends its children too, and what is missing: none stops the next."""
    child = f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); {WAIT}"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    asks = "import os, ttfs_kernels, _bench; print(os.environ['COLOUR'], os.environ['SHAPE'])"
    status, outcomes = run(
        tmp_path,
        stage(tmp_path, "wrong", "print('half way'); raise SystemExit('it is wrong')"),
        stage(tmp_path, "slow", parent, limit_s=3.0),
        stage(tmp_path, "no_package", "", packages=("json", "no_such_package")),
        stage(tmp_path, "no_program", "", programs=("no_such_program",)),
        stage(tmp_path, "no_data", "", arguments="{data}"),
        stage(tmp_path, "right", asks, before="env SHAPE=round", variables={"COLOUR": "red"}),
    )
    assert status == 1
    assert outcomes == {
        "wrong": ["refuted", "it is wrong", True],
        "slow": ["not reached", "out of time, begun", True],
        "no_package": ["not reached", "needs the package no_such_package", False],
        "no_program": ["not reached", "needs the program no_such_program", False],
        "no_data": ["not reached", "needs --data-dir", False],
        "right": ["confirmed", "red round", True],
    }
    said = capsys.readouterr().out
    assert "confirmed (1)\n  right              right works  [red round]\nrefuted (1)\n  wrong " in said
    assert (tmp_path / "summary.txt").read_text(encoding="utf-8") in said
    assert "half way\nit is wrong" in (tmp_path / "wrong.log").read_text(encoding="utf-8")
    status = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    deadline = time.monotonic() + 30
    with suppress(FileNotFoundError, ProcessLookupError):  # it has gone
        while status.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_what_has_ended_is_run_again_only_by_name(tmp_path):
    calls = tmp_path / "calls"
    note = f"open({str(calls)!r}, 'a').write('x')"
    stages = (stage(tmp_path, "once", note), stage(tmp_path, "wrong", f"{note}; raise SystemExit(3)"))
    run(tmp_path, *stages)
    assert run(tmp_path, *stages)[0] == 1
    assert calls.read_text() == "xx"
    assert run(tmp_path, *stages, options=("once",))[0] == 0
    assert calls.read_text() == "xxx"
    with pytest.raises(SystemExit):
        run(tmp_path, *stages, options=("none",))


def test_a_stage_that_the_deadline_cut_is_run_by_the_next_call(tmp_path):
    slow = stage(tmp_path, "slow", WAIT, limit_s=100.0)
    assert gpu.run(slow, tmp_path, None, 1.0) == gpu.Outcome("not reached", "out of time, begun", ended=False)
    outcomes = gpu.run_all((slow,), tmp_path, None, time.monotonic() + 10)
    assert list(outcomes.values()) == [gpu.Outcome("not reached", "no time left")]
    assert run(tmp_path, stage(tmp_path, "slow", "print('done')"))[1] == {"slow": ["confirmed", "done", True]}


def test_real_stages_name_what_is_there(capsys):
    """Files and works that exist, statements of their own."""
    stages = gpu.read_stages()
    assert len({one.statement for one in stages}) == len(stages)
    for one in stages:
        paths = [word for word in one.command.split() if word.startswith(("bench/", "recipes/", "tests/"))]
        assert paths
        assert all((ROOT / path).exists() for path in paths)
        if paths[0] == "bench/_gpu_work.py":
            assert one.command.split()[1] in {work.__name__ for work in gpu_work.WORK}
    assert gpu.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [one.name for one in stages]
