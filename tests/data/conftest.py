"""A cache of data sets of the tests' own."""

from tests.data.fixtures import _own_cache

__all__ = ["_own_cache"]
