"""Train CNN1 on MNIST from scratch."""

from ttfs_triton.command_line import recipe, start

if __name__ == "__main__":
    start("ttfs_triton.train", recipe("cnn-mnist"), __doc__)
