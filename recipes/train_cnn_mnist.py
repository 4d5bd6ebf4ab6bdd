"""Train CNN1, the paper's small network, on MNIST."""

from ttfs_triton.command_line import recipe, start

if __name__ == "__main__":
    start("ttfs_triton.train", recipe("cnn-mnist"), __doc__)
