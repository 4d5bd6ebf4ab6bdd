"""Train a spiking CNN on the bundled Fashion-MNIST sample: no download, one to three minutes on two CPU cores."""

from ttfs_triton.command_line import recipe, start

if __name__ == "__main__":
    start("ttfs_triton.train", recipe("quickstart"), __doc__)
