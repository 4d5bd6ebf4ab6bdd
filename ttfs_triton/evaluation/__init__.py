"""Evaluation of a trained network on a test set: accuracy, counts, simulation and energy on chips."""

from ttfs_triton.evaluation.load import LoadedNetwork, load_network, load_test_images
from ttfs_triton.model import LoadError

__all__ = ["LoadError", "LoadedNetwork", "load_network", "load_test_images"]
