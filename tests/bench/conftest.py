"""Fixture that runs a timing script of bench/ by its command line and reads its result file."""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from tests.bench.modules import modules

(bench,) = modules("_bench")
Rows = list[dict[str, str]]


@pytest.fixture
def run_script(monkeypatch, tmp_path) -> Callable[..., tuple[Rows, dict[str, str]]]:
    """A function that runs a script and reads the only table that it writes: rows of times, and their circumstances."""

    def run(script: ModuleType, *arguments: str) -> tuple[Rows, dict[str, str]]:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *arguments, "--output", str(tmp_path)])
        script.main()
        (path,) = tmp_path.glob("*.csv")
        rows, about = bench.read(path)
        assert all(0 < float(row["ms_p20"]) <= float(row["ms_p50"]) <= float(row["ms_p80"]) for row in rows)
        assert about["command"].endswith(arguments[-1])  # without where the results went
        return rows, about

    return run
