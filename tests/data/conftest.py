"""The fixture `_own_cache`: these tests cache data sets in a folder of their own."""

from tests.data.fixtures import _own_cache

__all__ = ["_own_cache"]
