"""Images and labels: from the Hub, parquet files or folders, decoded once, pixel by pixel as they are."""

from ttfs_triton.data.images import ImageData, load_images, train_validation_split

__all__ = ["ImageData", "load_images", "train_validation_split"]
