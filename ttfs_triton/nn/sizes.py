"""Sizes of kernels and maps: checks of arguments, and the step with which skips read larger maps."""

from collections.abc import Sequence
from typing import Any, Literal

from ttfs_kernels.checks import pair as checked_pair

Size = int | tuple[int, int]
Padding = Size | Literal["same", "valid"]


def skip_step(size: Sequence[int], shape: Sequence[int]) -> tuple[int, ...] | None:
    """Step k with which a skip reads the earlier layer's maps: every k-th row and column.

    Args:
        size: (channels, rows, columns) of the earlier layer, or (features,).
        shape: the same for the layer that the skip reaches.
    Returns:
        k for rows and columns; () for fully connected layers; None if channels or maps do not fit.
    """
    if len(size) != len(shape) or size[0] > shape[0]:
        return None
    steps = tuple(-(-before // after) for before, after in zip(size[1:], shape[1:], strict=True))
    fits = all(-(-before // k) == after for before, after, k in zip(size[1:], shape[1:], steps, strict=True))
    return steps if fits else None


def checked_padding(
    name: str, padding: Any, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of padding on each side, from an argument as in `torch.nn.Conv2d`; must be equal on both."""
    if not isinstance(padding, str):
        return checked_pair(name, "padding", padding, 0)
    if padding == "valid":
        return 0, 0
    if padding != "same":
        raise ValueError(f'{name}: padding must be sizes, "same" or "valid"; got {padding!r}.')
    if stride != (1, 1):
        raise ValueError(f'{name}: stride must be 1 with padding="same"; got {stride}. Give the padding as a number.')
    rows, columns = (step * (size - 1) for size, step in zip(kernel_size, dilation, strict=True))
    if rows % 2 or columns % 2:
        raise ValueError(
            f'{name}: kernel_size must be odd with padding="same", so that both sides are padded alike; got '
            f"{kernel_size}. Use an odd kernel, or give the padding as a number."
        )
    return rows // 2, columns // 2


def pair(value: Size) -> tuple[int, int]:
    """A size for both image dimensions, (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
