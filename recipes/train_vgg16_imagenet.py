"""Train VGG16 on ImageNet, or on other photographs of any sizes, in class folders or parquet files."""

import sys

from ttfs_triton.ttfs import main

if __name__ == "__main__":
    main(["train", "vgg16-imagenet", *sys.argv[1:]])
