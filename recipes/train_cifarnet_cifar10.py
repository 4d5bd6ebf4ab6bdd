"""Train a small network on CIFAR-10, fast."""

from ttfs_triton.command_line import recipe, start

if __name__ == "__main__":
    start("ttfs_triton.train", recipe("cifarnet-cifar10"), __doc__)
