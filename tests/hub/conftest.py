"""One small trained network and one Hub for all tests here."""

import shutil

import pytest
from accelerate.state import AcceleratorState

from tests.hub.client import Client, environment
from tests.hub.server import HubServer
from tests.train.conftest import _own_cache  # noqa: F401
from ttfs_triton.train import TrainConfig, train


@pytest.fixture(scope="session")
def trained(tmp_path_factory, _own_cache):  # noqa: F811
    """Folder of a run of one epoch on some of the bundled images."""
    folder = tmp_path_factory.mktemp("hub") / "run"
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


@pytest.fixture(scope="session")
def hub():
    server = HubServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _nothing_dropped(hub):
    yield
    hub.drop = None


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Cache of the clients."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def client(hub, home):
    """A process logged in as alice, who may write to alice/ and org/."""
    process = Client(environment(hub.url, home, HF_TOKEN="hf_writer"))
    process.run("from ttfs_triton.model import *; from ttfs_triton.hub.publish import publish; import torch")
    yield process
    process.close()
