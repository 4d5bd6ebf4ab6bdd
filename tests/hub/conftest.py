"""Fixtures: one local Hub server for all tests, and this process as its user."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout

import pytest

from tests.hub.server import HubServer
from ttfs_triton.hub.publish import publish


@pytest.fixture(scope="session")
def hub():
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    """Let this process use the hub as alice, who may write to alice/ and org/; with an empty cache, without waiting."""
    hub.use_here(monkeypatch, tmp_path / "cache", "hf_writer")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield
    hub.drop = None


@pytest.fixture
def run_code(here, tmp_path, monkeypatch) -> Callable[[str], str]:
    """Runs code of a card in a folder of the test, and returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(code: str) -> str:
        with redirect_stdout(io.StringIO()) as printed:
            exec(code, {})
        return printed.getvalue()

    return run


@pytest.fixture(scope="session")
def published(trained, hub, tmp_path_factory):
    """Name of a repository with the trained network."""
    with pytest.MonkeyPatch.context() as patch:
        hub.use_here(patch, tmp_path_factory.mktemp("cache"), "hf_writer")
        publish(trained, "org/model", license="mit")
    return "org/model"
