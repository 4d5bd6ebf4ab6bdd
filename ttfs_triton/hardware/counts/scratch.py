"""Memory for what is needed for a moment, by one layer after the other."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """On a CPU the same memory for everybody, since fresh pages cost more there than what counting writes to them; on
    other devices fresh tensors, whose memory PyTorch keeps.
    """

    def __init__(self) -> None:
        self._memory: dict[torch.dtype, Tensor] = {}

    def empty(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[rows, columns], not initialised; what an earlier call with this type gave is lost."""
        if device.type != "cpu":
            return torch.empty(rows, columns, dtype=dtype, device=device)
        if dtype not in self._memory or self._memory[dtype].numel() < rows * columns:
            self._memory[dtype] = torch.empty(rows * columns, dtype=dtype)
        return self._memory[dtype][: rows * columns].view(rows, columns)
