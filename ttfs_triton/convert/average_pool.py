"""Average pools of an ANN: the windows that they divide maps into, and their place in a layer's weights."""

import torch
from einops import rearrange
from torch import Tensor, nn

from ttfs_triton.nn.sizes import pair


def fold_average_pool(weight: Tensor, pool: nn.Module, maps: tuple[int, int]) -> Tensor:
    """Fold an average pool into the weights of the fully connected layer that reads it.

    An adaptive pool replicates maps smaller than its output: a head for 7×7 maps, on 1×1 maps, becomes the sum over its
    49 places.

    Args:
        weight: [features, channels·rows·columns]; rows and columns are those of the pool's output.
        pool: the average pool, adaptive or not.
        maps: height and width of the pool's input.
    Returns:
        [features, channels·height·width], float64.
    """
    places = maps[0] * maps[1]
    one_hot = rearrange(torch.eye(places, dtype=torch.float64), "p (h w) -> p 1 h w", h=maps[0])
    basis = rearrange(pool(one_hot), "p 1 h w -> p (h w)")
    by_map = rearrange(weight.double().cpu(), "o (c p) -> o c p", p=basis.shape[1])
    return rearrange(by_map @ basis.T, "o c p -> o (c p)").to(weight.device)


def pooled_size(pool: nn.Module, maps: tuple[int, int]) -> tuple[int, ...]:
    """Height and width behind a pool of maps of this height and width."""
    return tuple(pool(torch.empty(1, 1, *maps)).shape[2:])


def window_of(pool: nn.Module, maps: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width of the windows that a pool divides its maps into; None if it does not divide them."""
    rows, columns = pooled_size(pool, maps)
    window = (maps[0] // rows, maps[1] // columns)
    whole = (rows * window[0], columns * window[1]) == maps
    if isinstance(pool, nn.AvgPool2d):
        whole = pair(pool.kernel_size) == window and (window == maps or pair(pool.stride) == window)
        whole = whole and pair(pool.padding) == (0, 0) and pool.divisor_override is None
    return window if whole else None
