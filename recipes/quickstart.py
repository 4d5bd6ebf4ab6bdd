"""Train a spiking CNN on the bundled Fashion-MNIST sample: no download, some minutes on two CPU cores."""

from pathlib import Path

from ttfs_triton.command_line import start

if __name__ == "__main__":
    start("ttfs_triton.train", Path(__file__).with_suffix(".yaml"), __doc__)
