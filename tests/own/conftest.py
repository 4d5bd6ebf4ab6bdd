"""Fixtures: a local Hub server, and a client process that uses it."""

from tests.hub.conftest import client, home, hub  # noqa: F401
