"""The counter-based generator against its published vectors and a scalar reading of the paper."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttfs_triton.data.augment.philox import philox, random_words

# Known-answer tests of Random123 (kat_vectors, philox4x32 with 10 rounds): counter, key, words.
VECTORS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def scalar_philox(counter: list[int], seed: int) -> list[int]:
    """Word by word, in Python's unbounded integers."""
    a, b, c, d = counter
    key = [seed % 2**32, seed >> 32]
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (second >> 32) ^ b ^ key[0], second % 2**32, (first >> 32) ^ d ^ key[1], first % 2**32
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return [a, b, c, d]


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_philox_gives_the_published_numbers(counter, key, words, device):
    seed = key[0] | key[1] << 32
    assert philox(torch.tensor(counter, device=device), seed).tolist() == scalar_philox(counter, seed) == words


@given(
    st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4)
)
def test_random_words_are_those_of_the_key(seed, epoch, indices):
    words = random_words(seed, epoch, torch.tensor(indices))
    for index, row in zip(indices, words.tolist(), strict=True):
        blocks = [scalar_philox([index % 2**32, index >> 32, epoch, block], seed) for block in range(3)]
        assert row == [*blocks[0], *blocks[1], *blocks[2]]
