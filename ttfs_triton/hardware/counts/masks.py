"""Spikes of a batch, added up exactly over samples and over neurons, eight neurons at a time.

A mask has one byte a neuron, 1 if it fired. Read as 64-bit words and added up as such, up to 255 of them, words keep
their eight bytes apart: such a sum costs an eighth of one neuron by neuron.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Words that may be added up before a byte runs over into the next.
WORDS = 255


class SpikeMasks:
    """Memory for the masks of a few samples, used again and again: neurons that fired, and those that were saturated.

    Args:
        samples: the most that it takes at once, up to 255.
        spikes: [neurons] int64, each neuron's spikes, to which this adds.
    """

    def __init__(self, samples: int, spikes: Tensor) -> None:
        self._spikes = spikes
        # Words of a sample, in as few groups as keep within `WORDS`; bytes beyond the neurons stay 0.
        words = -(-len(spikes) // 8)
        self.groups = -(-words // WORDS)
        padded = self.groups * -(-words // self.groups)
        self._fired = torch.zeros(samples, 8 * padded, dtype=torch.bool, device=spikes.device)
        self._saturated = torch.zeros_like(self._fired, dtype=torch.int8)
        self._sum = torch.zeros(padded, dtype=torch.int64, device=spikes.device)
        self._summed = 0

    def __len__(self) -> int:
        return len(self._fired)

    def add(self, activations: Tensor, fired: Tensor, saturated: Tensor) -> None:
        """Add samples.

        Args:
            activations: [n, neurons] in [0, 1]; what is not zero fired, `nan` too; 1 is saturated.
            fired, saturated: [n, groups] int64, overwritten: `add_bytes`, summed over groups, gives each sample's.
        """
        samples, neurons = activations.shape
        if self._summed + samples > WORDS:
            self.flush()
        for mask, out in ((self._saturated, saturated), (self._fired, fired)):
            mask[:samples, :neurons].copy_(activations)  # as integers, whose fractions are cut off; as truth values
            words = mask[:samples].view(torch.int64)
            torch.sum(words.view(samples, self.groups, words.shape[1] // self.groups), 2, out=out)
        self._sum += words.sum(0)
        self._summed += samples

    def flush(self) -> None:
        """Add to `spikes` what is not there yet."""
        self._spikes += self._sum.view(torch.uint8)[: len(self._spikes)]
        self._sum.zero_()
        self._summed = 0


def add_bytes(words: Tensor) -> Tensor:
    """The sum of the eight unsigned bytes of each int64."""
    every_other = 0x00FF00FF00FF00FF
    pairs = (words & every_other) + ((words >> 8) & every_other)
    return (pairs * 0x0001000100010001) >> 48  # the topmost 16 bits become the sum of all four
