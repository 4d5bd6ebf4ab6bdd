"""Train ResNet-20, a network with skips, on CIFAR-10."""

import sys

from ttfs_triton.ttfs import main

if __name__ == "__main__":
    main(["train", "resnet20-cifar10", *sys.argv[1:]])
