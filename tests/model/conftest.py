"""The fixture `trained`: one small trained network for all tests of this folder."""

from tests.trained import _own_cache, run, trained

__all__ = ["_own_cache", "run", "trained"]
