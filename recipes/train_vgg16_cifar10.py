"""Train VGG16 on CIFAR-10."""

import sys

from ttfs_triton.ttfs import main

if __name__ == "__main__":
    main(["train", "vgg16-cifar10", *sys.argv[1:]])
