"""Memory for what counting needs for a moment: on a CPU one for all layers and all counters, kept.

Fresh memory costs a CPU more than what counting writes to it, and not by its own pages alone: taken between a batch's
activations, it splits the block in which the next batch's would have found room. That was up to 8 % of evaluating CNN1.
Other devices get fresh tensors, whose memory PyTorch keeps by itself.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from ttfs_triton.nn.statistics import PART_BYTES


class _Memory(threading.local):
    def __init__(self) -> None:
        self.by_type: dict[torch.dtype, Tensor] = {}


_MEMORY = _Memory()


def scratch(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[rows, columns], not initialised; what this thread's earlier call with the same type gave is lost."""
    if device.type != "cpu":
        return torch.empty(rows, columns, dtype=dtype, device=device)
    kept = _MEMORY.by_type
    if dtype not in kept or kept[dtype].numel() < rows * columns:
        # As many numbers as the samples that layers read together have, in float32.
        kept[dtype] = torch.empty(max(rows * columns, PART_BYTES // 4), dtype=dtype)
    return kept[dtype][: rows * columns].view(rows, columns)


def reserve() -> None:
    """Take the memory before there are activations around it."""
    for dtype in (torch.float32, torch.int8):
        scratch(0, 0, dtype, torch.device("cpu"))
