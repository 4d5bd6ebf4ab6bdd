"""What a trained network does on a test set, and what it would cost on hardware."""

from ttfs_triton.evaluation.load import LoadedNetwork, load_network, load_test_images
from ttfs_triton.model import LoadError

__all__ = ["LoadError", "LoadedNetwork", "load_network", "load_test_images"]
