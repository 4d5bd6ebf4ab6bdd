"""One small trained network."""

from tests.hub.conftest import run, trained
from tests.train.conftest import _own_cache

__all__ = ["_own_cache", "run", "trained"]
