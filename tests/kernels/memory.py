"""Fenced tensors, which reveal reads of memory that was not written, and writes outside of a tensor."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

FENCE = 64  # elements on either side of a tensor; keeps its alignment


def fenced(tensor: Tensor, new_empty: Callable[..., Tensor] = Tensor.new_empty, shift: int = 0) -> Tensor:
    """A contiguous copy with NaN before and behind it in memory; `shift` elements off its alignment."""
    memory = new_empty(tensor, tensor.numel() + 2 * FENCE, dtype=tensor.dtype).fill_(math.nan)
    start = FENCE + shift
    return memory[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)


@contextmanager
def fenced_memory() -> Iterator[None]:
    """New tensors hold NaN until they are written to, and nothing may be written around them."""
    real_new_empty, real_empty_like, fences = Tensor.new_empty, torch.empty_like, []

    def new_empty(self: Tensor, *size: Any, **options: Any) -> Tensor:
        tensor = real_new_empty(self, *size, **options)
        tensor = fenced(tensor.fill_(math.nan), real_new_empty)
        memory = tensor.as_strided((tensor.numel() + 2 * FENCE,), (1,), 0)
        fences.extend((memory[:FENCE], memory[-FENCE:]))
        return tensor

    def empty_like(like: Tensor, **options: Any) -> Tensor:
        strides = real_empty_like(like, device="meta").stride()
        return new_empty(like, like.numel(), **options).as_strided(like.shape, strides)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "new_empty", new_empty)
        patch.setattr(torch, "empty_like", empty_like)
        yield
    assert all(fence.isnan().all() for fence in fences), "something was written around a tensor"
