"""Train ResNet-18, a network with skips, on CIFAR-100."""

from ttfs_triton.command_line import recipe, start

if __name__ == "__main__":
    start("ttfs_triton.train", recipe("resnet18-cifar100"), __doc__)
