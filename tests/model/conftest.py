"""One small trained network."""

from tests.trained import _own_cache, run, trained

__all__ = ["_own_cache", "run", "trained"]
