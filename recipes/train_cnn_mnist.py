"""Train CNN1, the paper's small network, on MNIST."""

import sys

from ttfs_triton.ttfs import main

if __name__ == "__main__":
    main(["train", "cnn-mnist", *sys.argv[1:]])
