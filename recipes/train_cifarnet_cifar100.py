"""Train cifarnet, a small convolutional network, on CIFAR-100."""

import sys

from ttfs_triton.ttfs import main

if __name__ == "__main__":
    main(["train", "cifarnet-cifar100", *sys.argv[1:]])
