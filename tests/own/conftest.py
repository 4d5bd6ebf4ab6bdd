"""Fixtures: a local Hub server, and this process as its user."""

from tests.hub.conftest import here, hub, run_code  # noqa: F401
