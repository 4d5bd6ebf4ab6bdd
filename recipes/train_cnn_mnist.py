"""Train CNN1 on MNIST from scratch."""

from pathlib import Path

from ttfs_triton.train import main

if __name__ == "__main__":
    main(Path(__file__).with_suffix(".yaml"), __doc__)
