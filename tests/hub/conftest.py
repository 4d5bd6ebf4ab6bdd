"""Fixtures: one local Hub server and one client for all tests of this folder."""

import pytest

from tests.hub.client import Client, environment
from tests.hub.server import HubServer


@pytest.fixture(scope="session")
def hub():
    server = HubServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _nothing_dropped(hub):
    yield
    hub.drop = None


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    """Let this process use the hub as alice, who may write to alice/ and org/; with an empty cache, without waiting."""
    hub.use_here(monkeypatch, tmp_path / "cache", "hf_writer")
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Folder of the clients' cache."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def client(hub, home):
    """A process logged in as alice, who may write to alice/ and org/."""
    process = Client(environment(hub.url, home, HF_TOKEN="hf_writer"))
    process.run("from ttfs_triton.model import *; from ttfs_triton.hub.publish import publish; import torch")
    yield process
    process.close()
