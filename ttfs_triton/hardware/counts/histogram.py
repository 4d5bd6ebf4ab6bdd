"""Histograms of spike times."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttfs_triton.hardware.counts.scratch import scratch
from ttfs_triton.nn.statistics import samples_at_once


def spike_histogram(activations: Tensor, bins: int) -> Tensor:
    """[bins] int64, spikes by time from the window's start, 1 − activation, in equal bins over the window.

    Every spike is in one bin, no silent neuron in any. A spike at a border of bins belongs to the earlier one; as near
    to it as float32 can tell, to either.

    Args:
        activations: [n, neurons] in [0, 1]; `nan` counts as silent.
        bins: at least 1.
    """
    # Place 0 takes the silent, place k up to `bins` the activations in [(k − 1)/bins, k/bins), the last one those of 1:
    # ⌈a · bins⌉, but for a scale that is a little larger, so that borders go up.
    scale = torch.nextafter(torch.tensor(float(bins)), torch.tensor(math.inf)).item()
    found = torch.zeros(bins + 2, dtype=torch.int64, device=activations.device)
    count = count_whole_numbers if activations.is_cpu else count_whole_numbers_anywhere
    for part in activations.split(samples_at_once(activations)):
        place = scratch(len(part), part.shape[1], torch.float32, part.device)
        torch.mul(part.float(), scale, out=place).ceil_().nan_to_num_(0.0)
        found += count(place.view(-1), bins + 2)
    found[bins] += found[bins + 1]
    return found[1 : bins + 1].flip(0)


def count_whole_numbers(values: Tensor, number: int) -> Tensor:
    """How often each of 0, 1, …, `number` − 1 occurs among `values`, [n] float32 on a CPU; [number] int64.

    One 0 too many if n is odd. Eight times as fast as `torch.histc`: `bincount` is four times as fast, and pairs of
    values are half as many and seldom the same as the pair before, whose count would have to be waited for.
    """
    if number > 128:
        return torch.bincount(values.int(), minlength=number)
    pairs = scratch(1, len(values) + len(values) % 2, torch.int8, values.device).view(-1)
    pairs[: len(values)] = values
    pairs[len(values) :] = 0
    by_pair = torch.bincount(pairs.view(torch.int16), minlength=256 * number).view(number, 256)[:, :number]
    return by_pair.sum(0) + by_pair.sum(1)


def count_whole_numbers_anywhere(values: Tensor, number: int) -> Tensor:
    """The same, on any device: `bincount` would make a GPU's host wait for the largest value."""
    return torch.histc(values, number, 0.0, float(number)).long()
