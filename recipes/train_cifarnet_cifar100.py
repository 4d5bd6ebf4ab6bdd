"""Train a small network on CIFAR-100, fast."""

from ttfs_triton.command_line import recipe, start

if __name__ == "__main__":
    start("ttfs_triton.train", recipe("cifarnet-cifar100"), __doc__)
