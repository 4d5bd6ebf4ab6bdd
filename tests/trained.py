"""One small trained network, for the tests of what is done with one; a conftest takes the fixtures that it needs."""

import shutil

import pytest
from accelerate.state import AcceleratorState

from tests.data.fixtures import _own_cache  # noqa: F401
from ttfs_triton.train import TrainConfig, train


@pytest.fixture(scope="session")
def trained(tmp_path_factory, _own_cache):  # noqa: F811
    """Folder of a run of one epoch on some of the bundled images."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(
        TrainConfig(
            dataset="sample",
            model="4C5-P4-16",
            epochs=1,
            lr=2e-2,
            readout="potential_end",
            psp_persistence=0.25,
            max_train_samples=300,
            max_test_samples=100,
            output_dir=folder,
            cpu=True,
        )
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(trained, tmp_path / "run")
