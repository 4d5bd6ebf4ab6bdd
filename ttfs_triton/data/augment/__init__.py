"""Augmentation of image batches on the device that holds them, with random numbers of its own for each image.

`augmentation` augments a batch, `philox` makes the random numbers, `policy` holds AutoAugment as tables, and its
operations, `geometry` moves pixels.

Operations equal Pillow's as torchvision calls them (affine maps, nearest pixel, one fill for all channels), in every
grey level and at every magnitude. torchvision's own operations on tensors differ: they take other pixels when an image
is rotated, and round blends, means and autocontrast differently.

Why not an existing library: kornia (0.9.0) draws one AutoAugment sub-policy for a whole batch, magnitudes from
intervals where the paper has numbers, and all from the global generator. DALI (2.4.0) draws image by image, but from
streams that are seeded once for a pipeline, not by image; it needs one vendor's machines and its own loader. So neither
draws the same for an image under another number of processes or another batch size.
"""

from ttfs_triton.data.augment.augmentation import Augmentation

__all__ = ["Augmentation"]
