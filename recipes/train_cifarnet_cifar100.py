"""Train cifarnet, a small convolutional network, on CIFAR-100."""

from ttfs_triton.command_line import recipe, start

if __name__ == "__main__":
    start("ttfs_triton.train", recipe("cifarnet-cifar100"), __doc__)
