"""Train cifarnet, a small convolutional network, on CIFAR-10."""

import sys

from ttfs_triton.ttfs import main

if __name__ == "__main__":
    main(["train", "cifarnet-cifar10", *sys.argv[1:]])
