"""What a trained network does on a test set, and what it would cost on hardware."""

from ttfs_triton.evaluation.data import load_test_images
from ttfs_triton.evaluation.load import LoadedNetwork, LoadError, load_network

__all__ = ["LoadError", "LoadedNetwork", "load_network", "load_test_images"]
