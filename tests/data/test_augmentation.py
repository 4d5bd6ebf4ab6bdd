"""Augmentation against a slow reference, AutoAugment against torchvision's, random numbers as published."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ttfs_triton.data.augment import Augmentation
from ttfs_triton.data.augment.philox import philox, random_words
from ttfs_triton.data.augment.policy import PLAIN, SIGNED, apply_operations, auto_augment_policy, policy_tables

REFLECTED = {"crop_padding": 4, "crop_fill": "reflect"}
EVERYTHING = {"crop_padding": 4, "crop_fill": 128, "flip": True, "shift": 2, "auto_augment": True, "cutout": 5}


def batch(n: int = 8, channels: int = 3, height: int = 9, width: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def striped(n: int, channels: int, height: int, width: int) -> Tensor:
    """Images of ramps, narrow and wide, dark and bright."""
    image, channel, row, column = np.ogrid[:n, :channels, :height, :width]
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
    expected = np.stack([reference(*image, options) for image in zip(images.numpy(), words, strict=True)])
    assert torch.equal(result, torch.from_numpy(expected).float() / 255)
    assert channels == 1 or result.is_contiguous(memory_format=torch.channels_last)


@given(seed=st.integers(0, 2**64 - 1), first=st.integers(0, 2**40), epoch=st.integers(0, 100))
def test_alternating_flip_is_random_in_the_first_epoch_and_alternates_from_there(seed, first, epoch):
    images, indices, alternating = batch(64), torch.arange(first, first + 64), Augmentation(flip="alternating")
    start = Augmentation(flip=True)(images, indices, seed=seed, epoch=0)
    for later in (epoch, epoch + 1):
        expected = start if later % 2 == 0 else start.flip(3)
        assert torch.equal(alternating(images, indices, seed=seed, epoch=later), expected)


# The first figures of SHA-256 of 40 images in colour and as many grey ones, so that no run changes with the code.
@pytest.mark.parametrize(
    ("options", "digest"),
    [(REFLECTED, "64482859ad3a"), ({"flip": "alternating"}, "5ed822dc2703"), (EVERYTHING, "2b5cc6de94dc")],
)
def test_augmented_images_stay_the_same(device, options, digest):
    pixels = hashlib.sha256()
    for channels in (3, 1):
        images, indices = striped(40, channels, 16, 16).to(device), torch.arange(2**33, 2**33 + 40, device=device)
        result = Augmentation(**options)(images, indices, seed=2**63 + 5, epoch=3)
        pixels.update((255 * result).round().to(torch.uint8).cpu().contiguous().numpy().tobytes())
    assert pixels.hexdigest().startswith(digest)


def test_augmentation_rejects_images():
    for options, images, message in (
        ({}, batch().float(), r"images must be uint8; got torch\.float32"),
        ({}, batch(n=7), r"indices must be \[n\], one per image; got \(8,\) for 7 images"),
        ({}, batch(n=8, height=1, width=8193), r"images must be at most 8192 pixels a side; got \(1, 8193\)"),
        (REFLECTED, batch(height=4), r"crop_padding must be less than the sides of .*; got 4 for \(4, 7\)\. Lower"),
        ({"auto_augment": True}, batch(channels=2), "images must have 1 or 3 channels for AutoAugment; got 2"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            Augmentation(**options)(images, torch.arange(8), seed=0, epoch=0)


# Known-answer tests of Random123 (kat_vectors, philox4x32 with 10 rounds): counter, key, words.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_numbers(counter, key, words, device):
    assert philox(torch.tensor(counter, device=device), key[0] | key[1] << 32).tolist() == words


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1))
def test_random_words_are_those_of_the_key(seed, epoch, index):
    counters = torch.tensor([[index % 2**32, index >> 32, epoch, block] for block in range(3)])
    assert torch.equal(random_words(seed, epoch, torch.tensor([7, index]))[1], philox(counters, seed).flatten())


# ---- AutoAugment


def test_auto_augment_policy_is_that_of_torchvision():
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._policies
    for our_pair, their_pair in zip(auto_augment_policy(32, 48), theirs, strict=True):
        for (operation, probability, magnitude), (name, their_probability, level) in zip(
            our_pair, their_pair, strict=True
        ):
            assert (operation, probability) == (name, their_probability)
            if operation not in PLAIN:
                values, _ = v2.AutoAugment._AUGMENTATION_SPACE[operation]
                assert magnitude == values(10, 32, 48).tolist()[level]


def test_rows_follow_sub_policy_stage_sign_and_probability():
    tables, words = policy_tables(32, 32, torch.device("cpu")), torch.zeros(1024, 12, dtype=torch.int64)
    always, never = 0, 2**32 - 1
    assert tables.kinds.shape == (1 + 25 * 2 * 2,)
    words[:5, 3] = (torch.tensor([0, 0, 3, 24, 14]) << 32) // 25 + 1  # the last one inverts with probability 0
    words[:5, 4] = torch.tensor([always, never, always, always, never])
    words[:5, 5] = torch.tensor([never, always, always, never, always])
    words[:5, 6] = torch.tensor([0b00, 0b11, 0b10, 0b01, 0b00]) << 30
    assert tables.draw(words[:5]).tolist() == [[1, 0], [0, 4], [14, 15], [97, 0], [0, 0]]
    words[:, 3], words[:, 4:6] = (7 << 32) // 25 + 1, torch.arange(0, 2**32, 2**22)[:, None]
    assert (tables.draw(words) > 0).sum(0).tolist() == [308, 717]  # 0.3 and 0.7


def torchvision_result(image: Tensor, name: str, magnitude: float, fill: int) -> Tensor:
    """As `v2.AutoAugment` applies it to a Pillow image."""
    transform = v2.AutoAugment(fill=[float(fill)] * len(image))
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy() if len(image) > 1 else image[0].numpy())
    result = transform._apply_image_or_video_transform(
        picture, name, magnitude, interpolation=transform.interpolation, fill=transform._fill
    )
    return torch.from_numpy(np.array(result)).view(*image.shape[1:], len(image)).permute(2, 0, 1)


@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 3), (28, 28, 1), (17, 40, 3), (2, 5, 3)])
def test_operations_equal_those_of_torchvision_and_pillow(height, width, channels):
    """Without exceptions and without tolerance."""
    operations = [operation for sub_policy in auto_augment_policy(height, width) for operation in sub_policy]
    images = torch.cat([striped(20, channels, height, width)[::6], batch(2, channels, height, width)])
    images[0], tables = 77, policy_tables(height, width, torch.device("cpu"))
    for row in range(1, 2 * len(operations) + 1):
        operation = operations[(row - 1) // 2]
        negative = row % 2 == 0 and operation.name in SIGNED
        magnitude = -operation.magnitude if negative else operation.magnitude
        for image, ours in zip(images, apply_operations(images, torch.full((6,), row), tables, 128), strict=True):
            theirs = torchvision_result(image, operation.name, magnitude, 128)
            assert torch.equal(ours, theirs), (operation, magnitude, (ours.int() - theirs.int()).abs().max())
