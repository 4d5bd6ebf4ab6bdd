"""The whole pass, and its random numbers, against slow references that take one image, pixel and word at a time."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ttfs_triton.data.augment import Augmentation
from ttfs_triton.data.augment.philox import philox, random_words

EVERYTHING = {"crop_padding": 4, "crop_fill": 128, "flip": True, "shift": 2, "auto_augment": True, "cutout": 5}


def batch(n: int = 8, channels: int = 3, height: int = 9, width: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def striped(n: int, channels: int, size: int) -> Tensor:
    """Images of ramps, narrow and wide, dark and bright."""
    image, channel, row, column = np.ogrid[:n, :channels, :size, :size]
    levels = (7 * column + 5 * row * (1 + image % 3) + 11 * channel) % (20 + 7 * image) + 3 * image
    return torch.from_numpy(levels.clip(0, 255).astype(np.uint8))


def reference(image: np.ndarray, words: Sequence[int], options: dict) -> np.ndarray:
    """Crop, flip, shift and Cutout of one image, by its random words."""

    def drawn(word: int, limit: int) -> int:
        return words[word] * limit >> 32

    def window(image: np.ndarray, word: int, farthest: int, **border) -> np.ndarray:
        top, left = (drawn(word + axis, 2 * farthest + 1) for axis in (0, 1))
        padded = np.pad(image, ((0, 0), (farthest, farthest), (farthest, farthest)), **border)
        return padded[:, top : top + image.shape[1], left : left + image.shape[2]]

    fill = options["crop_fill"]
    border = {"mode": "reflect"} if fill == "reflect" else {"constant_values": fill}
    image = window(image, 0, options["crop_padding"], **border)
    if options["flip"] and drawn(2, 2):
        image = image[:, :, ::-1]
    image = window(image, 8, options["shift"]).copy()
    side = options["cutout"]
    top, left = (drawn(10 + axis, size) - side // 2 for axis, size in enumerate(image.shape[1:]))
    image[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
    return image


@given(
    channels=st.sampled_from([1, 3]),
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=st.integers(0, 1000),
    options=st.builds(
        dict,
        crop_padding=st.integers(0, 9),
        crop_fill=st.integers(0, 255) | st.just("reflect"),
        flip=st.booleans(),
        shift=st.integers(0, 3),
        cutout=st.integers(0, 5),
    ),
)
def test_augmentation_equals_the_slow_reference(channels, sides, layout, seed, options):
    if options["crop_fill"] == "reflect":
        options["crop_padding"] = min(options["crop_padding"], min(sides) - 1)
    images = batch(5, channels, *sides, seed).contiguous(memory_format=layout)
    before = images.clone()
    result = Augmentation(**options)(images, torch.arange(5), seed=seed, epoch=2)
    assert torch.equal(images, before)
    words = random_words(seed, 2, torch.arange(5)).tolist()
    expected = np.stack([reference(*each, options) for each in zip(images.numpy(), words, strict=True)])
    assert torch.equal(result, torch.from_numpy(expected).float() / 255)
    assert channels == 1 or result.is_contiguous(memory_format=torch.channels_last)


@given(seed=st.integers(0, 2**64 - 1), first=st.integers(0, 2**40), epoch=st.integers(0, 100))
def test_alternating_flip_is_random_in_the_first_epoch_and_alternates_from_there(seed, first, epoch):
    images, indices = batch(64), torch.arange(first, first + 64)
    alternating = Augmentation(flip="alternating")
    start = Augmentation(flip=True)(images, indices, seed=seed, epoch=0)
    here, next_one, later = (alternating(images, indices, seed=seed, epoch=epoch + more) for more in (0, 1, 2))
    assert torch.equal(here, start if epoch % 2 == 0 else start.flip(3))
    assert torch.equal(next_one, here.flip(3))
    assert torch.equal(later, here)


# The first figures of SHA-256 of 40 images in colour and as many grey ones, so that no run changes with the code.
GOLDEN = [
    ({"crop_padding": 4, "crop_fill": "reflect"}, "64482859ad3a"),
    ({"flip": "alternating"}, "5ed822dc2703"),
    (EVERYTHING, "2b5cc6de94dc"),
]


@pytest.mark.parametrize(("options", "digest"), GOLDEN)
def test_augmented_images_stay_the_same(device, options, digest):
    found = hashlib.sha256()
    for channels in (3, 1):
        images, indices = striped(40, channels, 16).to(device), torch.arange(2**33, 2**33 + 40, device=device)
        result = Augmentation(**options)(images, indices, seed=2**63 + 5, epoch=3)
        found.update((255 * result).round().to(torch.uint8).cpu().contiguous().numpy().tobytes())
    assert found.hexdigest().startswith(digest)


def test_what_auto_augment_uncovers_is_black_where_the_crop_reflects():
    images, indices = batch(50, height=12, width=12), torch.arange(50)
    reflecting, black = (Augmentation(auto_augment=True, crop_fill=fill) for fill in ("reflect", 0))
    assert torch.equal(*(each(images, indices, seed=0, epoch=0) for each in (reflecting, black)))


REFLECTED = {"crop_padding": 4, "crop_fill": "reflect"}


@pytest.mark.parametrize(
    ("options", "images", "message"),
    [
        ({}, batch().float(), r"images must be uint8; got torch\.float32"),
        ({}, batch(n=7), r"indices must be one for each image; got \(8,\) for 7 images"),
        ({}, batch(n=8, height=1, width=8193), r"images must be at most 8192 pixels a side; got \(1, 8193\)"),
        (REFLECTED, batch(height=4), r"crop_padding must be less than the sides of .*; got 4 for \(4, 7\)\. Lower"),
        ({"auto_augment": True}, batch(channels=2), "images must have 1 or 3 channels for AutoAugment; got 2"),
    ],
    ids=lambda case: "",
)
def test_augmentation_rejects_images(options, images, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Augmentation(**options)(images, torch.arange(8), seed=0, epoch=0)


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
