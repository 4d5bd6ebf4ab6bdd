"""The tests that take `device`, on the virtual CUDA device: in a process of its own, which it changes for good."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.virtual_cuda import why_not

ROOT = Path(__file__).parents[2]
# Networks, scoring, augmentation, and that a training step waits for nothing; all of it takes minutes.
QUICK = (
    *("tests/nn/test_models.py", "tests/scoring", "tests/augment"),
    "tests/train/test_steps.py::test_step_never_waits_for_the_device",
)


@pytest.mark.parametrize("rooms", [QUICK, pytest.param(("tests",), marks=pytest.mark.slow)], ids=["quick", "all"])
def test_rooms_on_the_virtual_device(rooms) -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "pytest", "--device", "virtual", "-q", "-p", "no:cacheprovider", *rooms]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stdout[-8000:] + process.stderr[-2000:]
    assert " passed" in process.stdout
