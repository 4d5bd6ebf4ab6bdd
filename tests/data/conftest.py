"""Small image data sets."""

from tests.data.fixtures import _own_cache, encode_png, random_images, write_parquet

__all__ = ["_own_cache", "encode_png", "random_images", "write_parquet"]
