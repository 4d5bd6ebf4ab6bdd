"""Train VGG16 on CIFAR-100."""

from pathlib import Path

from ttfs_triton.train import main

if __name__ == "__main__":
    main(Path(__file__).with_suffix(".yaml"), __doc__)
