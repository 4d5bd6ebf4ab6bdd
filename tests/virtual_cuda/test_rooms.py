"""The tests that take `device`, on the virtual CUDA device: in a process of its own, which it changes for good."""

import pytest

from tests.bench.modules import run_python
from tests.virtual_cuda import why_not

# The device itself, networks, scoring, augmentation, and that a training step waits for nothing; all takes minutes.
QUICK = (
    *("tests/virtual_cuda/test_device.py", "tests/nn/test_models.py", "tests/evaluate", "tests/data"),
    "tests/train/test_steps.py::test_step_never_waits_for_the_device",
)


@pytest.mark.parametrize("rooms", [QUICK, pytest.param(("tests",), marks=pytest.mark.slow)], ids=["quick", "all"])
def test_tests_with_a_device_pass_on_the_virtual_one(rooms) -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    options = ("--device", "virtual", "-q", "-p", "no:cacheprovider")
    assert " passed" in run_python("-m", "pytest", *options, *rooms, interpret=True, CUDA_VISIBLE_DEVICES="")
