"""Train VGG16 on ImageNet, or on other photographs: in class folders or parquet files, of any sizes."""

from ttfs_triton.command_line import recipe, start

if __name__ == "__main__":
    start("ttfs_triton.train", recipe("vgg16-imagenet"), __doc__)
