"""Augmentation of image batches where they lie, in one pass, each image by random numbers of its own."""

from ttfs_triton.augment.augmentation import Augmentation
from ttfs_triton.augment.mixing import Mixing, draw_mixing, mix

__all__ = ["Augmentation", "Mixing", "draw_mixing", "mix"]
