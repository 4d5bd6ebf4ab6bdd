"""Train VGG16 on ImageNet, or on other photographs: in class folders or parquet files, of any sizes."""

from pathlib import Path

from ttfs_triton.train import main

if __name__ == "__main__":
    main(Path(__file__).with_suffix(".yaml"), __doc__)
