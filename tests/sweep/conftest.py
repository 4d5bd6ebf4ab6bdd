"""Fixtures: one small trained network, and a finished sweep that starts from it."""

import pytest
from accelerate.state import AcceleratorState

from ttfs_triton.sweep import main

FLAGS = ("--cpu", "--epochs", "1", "--chip", "lemaire45:int8", "--steps", "8", "--max-test-samples", "100")
SWEEP = (*FLAGS, "--target-sparsity", "0.4", "--points", "time_steps=4+weight_bits=4+spike_jitter=0.1")
EVALUATED = ("--time-steps", "2", "4", "--weight-bits", "4", "--spike-jitter", "0.1", "0.3", "--deadlines")


def sweep(*arguments):
    """Run the sweep's command as in a new process, with accelerate's state reset before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        main("Sweep.", [str(word) for word in arguments])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def swept(trained, tmp_path_factory):
    """Folder of a finished sweep."""
    folder = tmp_path_factory.mktemp("sweep") / "out"
    sweep(trained, "--output-dir", folder, *SWEEP, *EVALUATED)
    return folder
