"""Fixtures: one small trained network for all tests of this folder, and its summary."""

import json

import pytest

from tests.trained import _own_cache, trained  # noqa: F401


@pytest.fixture(scope="session")
def summary(trained):  # noqa: F811
    return json.loads((trained / "summary.json").read_text())
