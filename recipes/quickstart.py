"""Train a spiking CNN on the bundled Fashion-MNIST sample: no download, a minute or two on two CPU cores."""

from pathlib import Path

from ttfs_triton.train import main

if __name__ == "__main__":
    main(Path(__file__).with_suffix(".yaml"), __doc__)
