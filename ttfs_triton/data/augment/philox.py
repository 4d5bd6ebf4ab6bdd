"""Random numbers as a function of their key: Philox-4x32-10, in integers, the same on every device.

The numbers of an image are a function of (seed, epoch, index of the image in its data set), so they are the same in any
process and batch, and after a restart.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

# Places of the decisions among an image's random words; a decision with two words has the first one's place. Places
# are fixed, so that an augmentation draws the same whatever else is switched on.
CROP, FLIP, SUB_POLICY, APPLIED, SIGN, SHIFT, CUTOUT = 0, 2, 3, 4, 6, 8, 10
BLOCKS = 3  # of four words


def philox(counters: Tensor, seed: int) -> Tensor:
    """Four random words per counter, [..., 4], int64, in [0, 2³²); the lower half of `seed` is the key's first word."""
    keys, multipliers, low, half = _constants(seed, counters.device)
    first, second, third, fourth = counters.reshape(-1, 4).unbind(1)
    # The third and first word are multiplied, the others are not; stacking them in pairs halves the calls.
    multiplied, others = torch.stack([third, first]), torch.stack([second, fourth])
    for key in keys:
        # The product of two 32-bit words may wrap to a negative int64; its bits are still correct.
        product = multiplied * multipliers
        words = (product >> half).bitwise_xor_(others).bitwise_xor_(key).bitwise_and_(low)  # the next first and third
        multiplied, others = words.flip(0), product.bitwise_and_(low)
    return torch.stack([multiplied[1], others[0], multiplied[0], others[1]], dim=1).view(counters.shape)


@functools.lru_cache(maxsize=4)
def _constants(seed: int, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    """Keys of the rounds, multipliers, mask of the lower word, bits of a word; kept on the device between batches."""
    halves = seed & _MASK, seed >> 32 & _MASK
    keys = [
        [half + number * weyl & _MASK for half, weyl in zip(halves, _WEYL, strict=True)] for number in range(ROUNDS)
    ]
    return (
        torch.tensor(keys, device=device)[..., None].unbind(0),
        torch.tensor(_MULTIPLIERS[::-1], device=device)[:, None],
        torch.tensor(_MASK, device=device),
        torch.tensor(32, device=device),
    )


def random_words(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Random words, [n, 12], int64, uniform in [0, 2³²), of images at `indices`, [n], int64, of their data set."""
    counters = indices.new_empty(len(indices), BLOCKS, 4)
    counters[..., 0] = (indices & _MASK)[:, None]
    counters[..., 1] = (indices >> 32)[:, None]
    counters[..., 2] = epoch
    counters[..., 3] = torch.arange(BLOCKS, device=indices.device)
    return philox(counters, seed).flatten(1)


def below(words: Tensor, limit: int) -> Tensor:
    """Uniform integers in [0, limit), limit ≤ 2³¹: the product's upper half, with a bias of less than limit / 2³²."""
    return words * limit >> 32
