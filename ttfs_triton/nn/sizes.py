"""Sizes of kernels and maps, and the step with which skips read larger maps."""

from collections.abc import Sequence

Size = int | tuple[int, int]


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


def whole_ratio(size: Sequence[int], larger: Sequence[int]) -> tuple[int, int] | None:
    """How many times larger the sides (rows, columns) of other maps are; None if a side is no multiple."""
    (rows, columns), (more_rows, more_columns) = size, larger
    return None if more_rows % rows or more_columns % columns else (more_rows // rows, more_columns // columns)


def pair(value: Size) -> tuple[int, int]:
    """A size for both image dimensions, (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
