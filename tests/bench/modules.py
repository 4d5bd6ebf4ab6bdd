"""Modules of `bench/` for tests.

The folder does not stay on the path: it holds a `kernels`, which is another project's name.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def modules(*names: str) -> Iterator[ModuleType]:
    """Modules by name; `kernels` is loaded as `bench_kernels`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        for name in names:
            module = "bench_kernels" if name == "kernels" else name
            if module not in sys.modules:
                specification = importlib.util.spec_from_file_location(module, BENCH / f"{name}.py")
                assert specification is not None
                assert specification.loader is not None
                sys.modules[module] = importlib.util.module_from_spec(specification)
                specification.loader.exec_module(sys.modules[module])
            yield sys.modules[module]


def run_python(*arguments: str, interpret: bool = False, status: int = 0, **variables: str) -> str:
    """What a Python process prints in which Triton compiles, or interprets; on one thread."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "160"} | ({"TRITON_INTERPRET": "1"} if interpret else {})
    words = [sys.executable, *arguments]
    done = subprocess.run(words, cwd=BENCH.parent, env=environment | variables, capture_output=True, text=True)
    assert done.returncode == status, done.stdout[-8000:] + done.stderr[-5000:]
    return done.stdout
