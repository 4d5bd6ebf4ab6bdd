"""Train ResNet-18, a network with skips, on CIFAR-100."""

import sys

from ttfs_triton.ttfs import main

if __name__ == "__main__":
    main(["train", "resnet18-cifar100", *sys.argv[1:]])
