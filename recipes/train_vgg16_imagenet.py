"""Train VGG16 on ImageNet, or on other photographs: in class folders or parquet files, of any sizes."""

from pathlib import Path

from ttfs_triton.command_line import start

if __name__ == "__main__":
    start("ttfs_triton.train", Path(__file__).with_suffix(".yaml"), __doc__)
