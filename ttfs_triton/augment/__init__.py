"""Augmentation of image batches where they lie, each image by random numbers of its own.

`augmentation` the options and the pass over a batch, `philox` the numbers, `policy` AutoAugment and TrivialAugment as
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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttfs_triton.augment.augmentation import Augmentation
    from ttfs_triton.augment.mixing import Mixing, draw_mixing, mix

# Imported when first asked for: the options of a command need no PyTorch.
_HOMES = {"Augmentation": "augmentation", "Mixing": "mixing", "draw_mixing": "mixing", "mix": "mixing"}
__all__ = ["Augmentation", "Mixing", "draw_mixing", "mix"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ttfs_triton.augment.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
