"""Augmentation of image batches where they lie, each image by random numbers of its own.

`augmentation` the pass over a batch, `philox` the numbers, `policy` AutoAugment and TrivialAugment as
tables, `operations` what these do to a batch, `geometry` all that moves pixels, `mixing` MixUp and CutMix.

Operations equal those of Pillow as torchvision calls them (affine maps, nearest pixel, one fill for all channels),
level by level, at every magnitude, without exceptions. torchvision's own on tensors are others: they take other
pixels when an image is turned, and round blends, means and autocontrast otherwise. Neither's is `rotation`: bilinear,
with places in 1/256 pixel and levels rounded to whole ones.

Why our own: kornia (0.9.0) draws one AutoAugment sub-policy for a whole batch, magnitudes from intervals where the
paper has numbers, and all from the global generator. DALI (2.4.0) draws image by image, but from streams that are
seeded once for a pipeline, not by image; and it is for one vendor's machines, with a loader of its own. So neither
repeats an image under another number of processes or another batch size.
"""

from ttfs_triton.augment.augmentation import Augmentation, Mixing, draw_mixing, mix

__all__ = ["Augmentation", "Mixing", "draw_mixing", "mix"]
