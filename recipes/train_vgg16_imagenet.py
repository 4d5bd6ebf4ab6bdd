"""Train VGG16 on ImageNet, or on other photographs of any sizes, in class folders or parquet files."""

from ttfs_triton.command_line import recipe, start

if __name__ == "__main__":
    start("ttfs_triton.train", recipe("vgg16-imagenet"), __doc__)
