"""One small trained network for all tests here."""

import json

import pytest

from tests.trained import _own_cache, trained  # noqa: F401


@pytest.fixture(scope="session")
def summary(trained):  # noqa: F811
    return json.loads((trained / "summary.json").read_text())
