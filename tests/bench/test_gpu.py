"""`make gpu` with stages that only pretend: none stops the next, nothing is lost, nothing is run twice."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.modules import BENCH, gpu_driver

ROOT = BENCH.parent
Stage = gpu_driver.Stage


def stage(name: str, code: str, **options) -> "gpu_driver.Stage":
    return Stage(name, f"{name} works", ("-c", code), **options)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu

    return gpu


def run(gpu, tmp_path: Path, *stages: "gpu_driver.Stage", options: tuple[str, ...] = ()) -> tuple[int, dict]:
    """Exit status and outcomes by stage."""
    status = gpu.main(["--output", str(tmp_path), *options], stages)
    return status, json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))


FAILING = "print('half way'); raise SystemExit('it is wrong')"


def test_every_stage_gets_a_verdict(gpu, tmp_path, capsys):
    """A failure, a timeout, and what is missing: none stops the next."""
    stages = (
        stage("wrong", FAILING),
        stage("slow", "import time; print('begun', flush=True); time.sleep(60)", limit_s=2.0),
        stage("no_package", "pass", packages=("json", "no_such_package")),
        stage("no_program", "pass", programs=("no_such_program",)),
        Stage("no_data", "data works", ("-c", "import sys; print(sys.argv)", "{data}")),
        stage("right", "print('well done'); print()"),
    )
    status, outcomes = run(gpu, tmp_path, *stages)
    assert status == 1
    found = {name: (outcome["verdict"], outcome["detail"], outcome["ended"]) for name, outcome in outcomes.items()}
    assert found == {
        "wrong": ("refuted", "it is wrong", True),
        "slow": ("not reached", "out of time, begun", True),
        "no_package": ("not reached", "needs the package no_such_package", False),
        "no_program": ("not reached", "needs the program no_such_program", False),
        "no_data": ("not reached", "needs --data-dir", False),
        "right": ("confirmed", "well done", True),
    }
    said = capsys.readouterr().out
    assert re.search(r"confirmed \(1\)\n  right +right works  \[well done\]\nrefuted \(1\)\n  wrong ", said)
    assert "not reached (4)\n  slow " in said
    assert (tmp_path / "summary.txt").read_text(encoding="utf-8") in said
    assert "half way\nit is wrong" in (tmp_path / "wrong.log").read_text(encoding="utf-8")


def test_exit_status_says_the_worst(gpu, tmp_path):
    assert run(gpu, tmp_path / "a", stage("right", "pass"))[0] == 0
    assert (
        run(gpu, tmp_path / "b", stage("right", "pass"), stage("none", "pass", packages=("no_such_package",)))[0] == 2
    )


def count(path: Path) -> str:
    """Code that adds a line to a file."""
    return f"open({str(path)!r}, 'a').write('x')"


def test_what_has_ended_is_not_run_again(gpu, tmp_path):
    calls = tmp_path / "calls"
    stages = (stage("once", count(calls)), stage("wrong", f"{count(calls)}; raise SystemExit(3)"))
    run(gpu, tmp_path, *stages)
    assert run(gpu, tmp_path, *stages)[0] == 1
    assert calls.read_text() == "xx"
    run(gpu, tmp_path, *stages, options=("--again", "wrong"))
    assert calls.read_text() == "xxx"
    run(gpu, tmp_path, *stages, options=("--again", "once", "--only", "once"))
    assert calls.read_text() == "xxxx"


def test_a_stage_that_keeps_its_work_is_called_again(gpu, tmp_path):
    """Two calls run out of time, the third ends."""
    calls = tmp_path / "calls"
    code = f"{count(calls)}; import time; time.sleep(60 if len(open({str(calls)!r}).read()) < 3 else 0); print('all')"
    status, outcomes = run(gpu, tmp_path, stage("long", code, limit_s=1.5, calls=4))
    assert status == 0
    assert outcomes["long"]["calls"] == 3
    assert outcomes["long"]["detail"] == "all"


def test_the_deadline_stops_in_time_and_the_next_call_goes_on(gpu, tmp_path):
    """Cut short by the deadline, a stage has not had its time: it is run again."""
    slow = "import time; time.sleep(4); print('rested')"
    stages = (stage("first", slow, limit_s=1e6), stage("second", "print('done')", limit_s=20.0))
    driver_start = time.monotonic()
    state = gpu_driver.run_all(stages, tmp_path, None, driver_start + 31)
    assert state.of(stages[0]).verdict == "confirmed"
    state.outcomes.clear()
    state.write()
    state = gpu_driver.run_all(stages, tmp_path, None, time.monotonic() + 10)
    assert [state.of(one).verdict for one in stages] == ["not reached"] * 2
    assert [state.of(one).detail for one in stages] == ["no time left"] * 2
    assert run(gpu, tmp_path, *stages)[0] == 0


def test_a_call_cut_by_the_deadline_is_not_its_last(tmp_path):
    one = stage("cut", "import time; time.sleep(60)", limit_s=100.0)
    outcome = gpu_driver.Outcome()
    gpu_driver.run(one, outcome, tmp_path, None, 1.0)
    assert (outcome.verdict, outcome.ended) == ("not reached", False)


def test_children_of_a_stage_end_with_it(gpu, tmp_path):
    identity = tmp_path / "pid"
    child = f"import os, time; open({str(identity)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    run(gpu, tmp_path, stage("parent", code, limit_s=3.0))
    deadline = time.monotonic() + 30
    while alive(int(identity.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(identity: int) -> bool:
    try:
        return Path(f"/proc/{identity}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_ended_driver_leaves_a_state_to_go_on_from(tmp_path):
    """SIGTERM in the second stage: the first is kept, the second is run by the next call."""
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(BENCH)!r})\n"
        "import gpu\n"
        "from _gpu_driver import Stage\n"
        "wait = 'import os, time; print(os.getppid(), flush=True); time.sleep(float(os.environ[\"REST\"]))'\n"
        "stages = (Stage('first', 's', ('-c', 'pass')), Stage('second', 's', ('-c', wait)))\n"
        f"sys.exit(gpu.main(['--output', {str(tmp_path)!r}], stages))\n",
        encoding="utf-8",
    )
    process = subprocess.Popen([sys.executable, str(program)], env=os.environ | {"REST": "60"})
    log = tmp_path / "second.log"
    while not (log.is_file() and len(log.read_text().splitlines()) > 1):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    kept = json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))
    assert kept["first"]["verdict"] == "confirmed"
    assert not kept.get("second", {"ended": False})["ended"]
    assert subprocess.run([sys.executable, str(program)], env=os.environ | {"REST": "0"}).returncode == 0


def test_variables_and_what_is_put_in_front_of_python_reach_the_stage(gpu, tmp_path):
    code = "import os, ttfs_kernels, _record; print(os.environ['COLOUR'], os.environ['SHAPE'])"
    before = ("env", "SHAPE=round")
    status, outcomes = run(gpu, tmp_path, stage("asks", code, before=before, variables=(("COLOUR", "red"),)))
    assert (status, outcomes["asks"]["detail"]) == (0, "red round")
    missing = stage("gone", "pass", before=("no_such_program",))
    assert run(gpu, tmp_path, missing)[1]["gone"]["verdict"] == "not reached"


def test_real_stages_name_what_is_there(gpu):
    """Files and works that exist, names and statements of their own, ten minutes at most; `make gpu` runs them."""
    import _gpu_work

    works = {work.__name__ for work in _gpu_work.WORK}
    assert len({one.name for one in gpu.STAGES}) == len({one.statement for one in gpu.STAGES}) == len(gpu.STAGES)
    for one in gpu.STAGES:
        assert one.limit_s <= 600
        paths = [word for word in one.command if word.startswith(("bench/", "recipes/", "tests/"))]
        assert paths
        assert all((ROOT / path).exists() for path in paths)
        if one.command[0] == "bench/_gpu_work.py":
            assert one.command[1] in works
    assert "\t$(RUN) bench/gpu.py $(ARGS)\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_stages_are_listed(gpu, capsys):
    assert gpu.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [one.name for one in gpu.STAGES]


def test_kernel_stages_need_no_package_of_the_recipes():
    """As on a machine with PyTorch and Triton alone."""
    code = (
        "import sys\n"
        "for name in ('tyro', 'pydantic', 'datasets'): sys.modules[name] = None\n"
        "import _gpu_work, kernels, train_step, _kernels_plan, ttfs_triton.nn\n"
        "assert kernels.load(kernels.Options().shapes)\n"
    )
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("bench", "", "kernels"))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_versions_say_why_kernels_cannot_run(gpu, monkeypatch, tmp_path, capsys):
    import _gpu_work

    monkeypatch.setattr(_gpu_work.torch.cuda, "is_available", lambda: False)
    assert _gpu_work.versions(str(tmp_path)) == 1
    assert capsys.readouterr().out.endswith("no GPU\n")
    assert json.loads((tmp_path / "versions.json").read_text(encoding="utf-8"))["triton"]


def test_rank_correlation(gpu):
    import _gpu_work

    pairs = _gpu_work.torch.tensor([[1.0, 10.0], [2.0, 11.0], [3.0, 500.0], [4.0, 501.0]])
    assert _gpu_work.rank_correlation(pairs) == pytest.approx(1)
    assert _gpu_work.rank_correlation(pairs * pairs.new_tensor([1, -1])) == pytest.approx(-1)
