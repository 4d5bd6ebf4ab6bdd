"""Train ResNet-20, a network with skips, on CIFAR-10."""

from ttfs_triton.command_line import recipe, start

if __name__ == "__main__":
    start("ttfs_triton.train", recipe("resnet20-cifar10"), __doc__)
