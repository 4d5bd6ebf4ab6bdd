"""Train a spiking CNN on the bundled Fashion-MNIST sample: no download, one to three minutes on two CPU cores."""

import sys

from ttfs_triton.ttfs import main

if __name__ == "__main__":
    main(["train", "quickstart", *sys.argv[1:]])
