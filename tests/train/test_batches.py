"""Batches of an epoch: functions of the position alone, the same however they are shared out."""

import pytest
import torch

from tests.evaluate.cases import join, numbered
from ttfs_triton.data.augment import Augmentation
from ttfs_triton.data.images import place_images
from ttfs_triton.train import TrainConfig
from ttfs_triton.train.data import EpochBatches, RunData, train_loader

KEYS = {"batch_size": 12, "seed": 5, "crop_padding": 2, "crop_fill": 128, "flip": True, "shift": 1, "cutout": 3}


def epoch(number=1, rank=0, processes=1, data=None, indices=None, **keys) -> EpochBatches:
    data, indices = data or numbered(50, 3), torch.arange(50) if indices is None else indices
    return EpochBatches(RunData(data, data, indices, indices[:0]), number, TrainConfig(**KEYS | keys), rank, processes)


def test_batches_have_the_given_images_once_and_leave_out_the_last_step_and_others_each_epoch():
    indices, seen = torch.arange(7, 46), set()
    for number in range(8):
        batches = epoch(number, indices=indices)
        found = {label for i in range(len(batches)) for label in batches[i][1].tolist()}
        assert (batches.steps, len(batches), len(found)) == (3, 3, 36)
        seen |= found
    assert seen == set(indices.tolist())


def test_order_and_augmentation_follow_from_seed_and_epoch():
    assert len({tuple(batches.order.tolist()) for batches in (epoch(), epoch(2), epoch(seed=6))}) == 3
    batches, keys = epoch(), {key: value for key, value in KEYS.items() if key in Augmentation.model_fields}
    order = batches.order[12:24]
    expected = Augmentation(**keys)(numbered(50, 3).images_at(order), order, seed=5, epoch=1)
    assert torch.equal(batches[1][0], expected)


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 2), (2, 3), (4, 3), (12, 1)])
@pytest.mark.parametrize("auto_augment", [False, True])
def test_batches_of_all_processes_make_the_batches_of_one(processes, accumulation, auto_augment):
    one, keys = epoch(auto_augment=auto_augment), {"auto_augment": auto_augment, "gradient_accumulation": accumulation}
    shares = [epoch(1, rank, processes, **keys) for rank in range(processes)]
    for step in range(one.steps):
        parts = [share[step * accumulation + micro_batch] for micro_batch in range(accumulation) for share in shares]
        assert all(map(torch.equal, join(parts), one[step]))


@pytest.mark.parametrize("images_ahead", [1, 5, 1000])
def test_loader_that_augments_ahead_changes_nothing(monkeypatch, device, images_ahead):
    monkeypatch.setattr("ttfs_triton.train.data.AUGMENTED_AHEAD", images_ahead * 64)
    (data,), _ = place_images([numbered(50, 3)], device)
    batches = epoch(1, 1, 2, data, auto_augment=True, gradient_accumulation=3)
    before = torch.get_rng_state()
    other = torch.device("cuda") if device.type == "cuda" else torch.device("cpu", 0)  # another name of the device
    loader = train_loader(batches, other, start_step=1)
    assert (loader.__name__ == "_augment_ahead") == (images_ahead > 1)
    loaded = list(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(loaded) == len(batches) - 3 == 9
    for number, found in enumerate(loaded, start=3):
        assert all(map(torch.equal, found, batches[number]))
        assert found[0].stride() == batches[number][0].stride()


@pytest.mark.parametrize(
    ("processes", "keys", "message"),
    [
        (2, {"gradient_accumulation": 4}, "batch_size must be a multiple of .*; got 12 for 2 x 4"),
        (1, {"batch_size": 64}, "batch_size must be at most the number of training images; got 64 for 50"),
        (1, {"crop_padding": 99, "crop_fill": "reflect"}, "crop_padding must be less than"),
    ],
)
def test_impossible_batches_are_refused(processes, keys, message):
    with pytest.raises(ValueError, match=message):
        epoch(processes=processes, **keys)
