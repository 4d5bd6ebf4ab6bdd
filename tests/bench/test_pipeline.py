"""The augmentation kernel compiled for every chip: what the interpreter accepts, the compiler need not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("triton")


def test_kernel_compiles_for_every_chip_without_spills():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    command = [sys.executable, "bench/pipeline.py", "--compile-only"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+): \d+ registers, 0 bytes spilled", done.stdout, re.MULTILINE) == [
        "sm_80",
        "sm_90",
        "gfx942",
    ]
