"""The fixture `summary`: of the trained run."""

import json

import pytest


@pytest.fixture(scope="session")
def summary(trained):
    return json.loads((trained / "summary.json").read_text())
