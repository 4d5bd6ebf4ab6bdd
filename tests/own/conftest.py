"""The Hub on the loopback, and a process that uses it."""

from tests.hub.conftest import client, home, hub  # noqa: F401
