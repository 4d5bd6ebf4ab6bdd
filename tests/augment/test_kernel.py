"""The kernel against its twin, bit for bit, and its random numbers against Philox."""

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from tests.augment.test_operations import POLICIES, photographs  # noqa: E402
from ttfs_triton.augment import Augmentation  # noqa: E402
from ttfs_triton.augment.kernel import block_of_words  # noqa: E402
from ttfs_triton.augment.philox import random_words  # noqa: E402


@triton.jit
def draw(indices_ptr, out_ptr, seed, epoch):
    image = tl.program_id(0)
    index = tl.load(indices_ptr + image)
    for block in tl.static_range(3):
        a, b, c, d = block_of_words(seed, epoch, index, block)
        tl.store(out_ptr + 12 * image + 4 * block, a.to(tl.int64))
        tl.store(out_ptr + 12 * image + 4 * block + 1, b.to(tl.int64))
        tl.store(out_ptr + 12 * image + 4 * block + 2, c.to(tl.int64))
        tl.store(out_ptr + 12 * image + 4 * block + 3, d.to(tl.int64))


def both(augmentation, images, indices, **options):
    options = {"seed": 2**63 + 5, "epoch": 3, **options}
    return [augmentation(images, indices, backend=backend, **options) for backend in ("triton", "torch")]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("height", "width", "channels"), [pytest.param(12, 12, 3, marks=pytest.mark.slow), (9, 14, 1)])
def test_kernel_equals_its_twin(device, policy, height, width, channels):
    chosen = {"trivial_augment": True} if policy == "trivial" else {"auto_augment": policy}
    augmentation = Augmentation(
        crop_padding=3, crop_fill=99, flip=True, shift=2, rotation=20, cutout=5, cutout_fill=7, **chosen
    )
    images, indices = (
        photographs(20, height, width, channels).to(device),
        torch.arange(2**33, 2**33 + 20, device=device),
    )
    kernel, twin = both(augmentation, images, indices)
    assert torch.equal(kernel, twin)
    assert kernel.stride() == twin.stride()


@pytest.mark.parametrize(
    "options",
    [{"crop_padding": 4}, {"flip": True}, {"shift": 3}, {"rotation": 180.0}, {"cutout": 4}, {"auto_augment": True}],
    ids=lambda options: next(iter(options)),
)
def test_each_augmentation_alone_is_that_of_the_twin(device, options):
    images = photographs(8, 10, 7, 3).to(device).contiguous(memory_format=torch.channels_last)
    kernel, twin = both(Augmentation(**options), images, torch.arange(8, device=device))
    assert torch.equal(kernel, twin)


def test_images_larger_than_a_block_are_those_of_the_twin(device):
    augmentation = Augmentation(crop_padding=4, auto_augment="imagenet", rotation=15, cutout=9)
    kernel, twin = both(augmentation, photographs(6, 36, 41, 3).to(device), torch.arange(6, device=device))
    assert torch.equal(kernel, twin)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_normalised_and_cast_images_are_those_of_the_twin(device, dtype):
    options = {"mean": (0.49, 0.48, 0.45), "std": (0.25, 0.24, 0.26), "dtype": dtype}
    images = photographs(8, 8, 8, 3).to(device)
    kernel, twin = both(Augmentation(flip=True), images, torch.arange(8, device=device), **options)
    assert kernel.dtype == dtype
    assert torch.equal(kernel, twin)


def test_words_of_the_kernel_are_those_of_philox(device):
    indices = torch.tensor([0, 1, 2**31, 2**40 + 7], device=device)
    for seed in (1, 77, -(2**63) + 9):
        out = torch.zeros(4, 12, dtype=torch.int64, device=device)
        draw[(4,)](indices, out, seed, 11)
        assert torch.equal(out, random_words(seed % 2**64, 11, indices, range(3)))
