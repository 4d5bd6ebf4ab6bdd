"""Images where they are best gathered: the same ones anywhere, and the next place where one is too small."""

import pytest
import torch

from tests.data.fixtures import random_images, write_parquet
from tests.evaluate.common import numbered
from ttfs_triton.data import placement
from ttfs_triton.data.images import load_images
from ttfs_triton.data.placement import place_images

SIZE = 50 * 8 * 8 * 3


@pytest.fixture
def splits():
    return [numbered(50, 3)]


def test_placed_images_are_the_images(splits, device):
    (placed,), where = place_images(splits, device)
    assert where.startswith("images: 0.0 MiB " + ("in main memory" if device.type == "cpu" else "on the device, 80"))
    assert placed.device.type == placed.labels.device.type == device.type
    assert placed.in_memory
    indices = torch.tensor([7, 3, 49, 3])
    images = placed.images_at(indices.to(device))
    assert torch.equal(images.cpu(), splits[0].images_at(indices))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert placed.labels[indices.to(device)].tolist() == [7, 3, 49, 3]


def test_encoded_images_stay_where_they_are(tmp_path):
    write_parquet(tmp_path / "train.parquet", random_images(4, 3), [0, 1, 0, 1])
    data = load_images(None, tmp_path, streaming=True)
    (placed,), where = place_images([data], torch.device("cpu"))
    assert placed is data
    assert not placed.in_memory
    assert where == "images: encoded on disk, decoded batch by batch"


class Refusing:
    """Stands for the pixels of a data set that a device has no room for."""

    nbytes = SIZE

    def to(self, device):
        if torch.device(device).type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(1, 8, 8, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("wanted", "free", "found"),
    [("auto", 2 * SIZE, "cuda"), ("auto", 2 * SIZE - 1, "host"), ("device", SIZE, "cuda"), ("host", 9 * SIZE, "host")],
)
def test_place_follows_from_free_memory(splits, monkeypatch, wanted, free, found):
    chosen = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, free))
    monkeypatch.setattr(placement, "_placed", lambda _, device, pinned=False: chosen.append((device.type, pinned)))
    _, where = place_images(splits, torch.device("cuda", 0), wanted)
    assert chosen == [("cuda", False) if found == "cuda" else ("cpu", True)]
    assert ("on the device, " if found == "cuda" else "in main memory, ") in where


def test_device_that_is_too_small_gives_way_to_the_host(splits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (100 * SIZE, 100 * SIZE))
    object.__setattr__(splits[0].store, "pixels", Refusing())
    (placed,), where = place_images(splits, torch.device("cuda", 0))
    assert placed.device.type == "cpu"
    assert placed.store.pinned
    assert where == "images: 0.0 MiB in main memory, 0.9 MiB are free on the device"
    with pytest.raises(RuntimeError, match=r"place_images: .* must fit .*; got 0.0 MiB.* --data-placement host"):
        place_images(splits, torch.device("cuda", 0), "device")
