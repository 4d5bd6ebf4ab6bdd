from dataclasses import replace

import pytest
import torch

from tests.scoring.common import join, numbered
from tests.virtual_cuda import recording
from ttfs_triton.augment import Augmentation
from ttfs_triton.data.decode import InMemoryImages
from ttfs_triton.data.images import ImageData, load_images
from ttfs_triton.data.placement import place_images
from ttfs_triton.train.batches import EpochBatches, train_loader

AUGMENTATION = Augmentation(crop_padding=2, crop_fill=128, flip=True, shift=1, rotation=10, cutout=3)

# Python 3.12 warns of every fork of a process with threads; the loader's workers are forked.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")


def epoch(n: int = 50, channels: int = 3, **options: object) -> EpochBatches:
    arguments = {"batch_size": 12, "seed": 5, "epoch": 1, "augmentation": AUGMENTATION, **options}
    return EpochBatches(numbered(n, channels), torch.arange(n), **arguments)  # type: ignore[arg-type]


def test_epoch_batches_are_images_in_the_unit_interval_with_their_labels():
    batches = epoch(augmentation=None)
    images, labels = batches[0]
    assert images.shape == (12, 3, 8, 8)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, (labels / 255).view(12, 1, 1, 1).expand(12, 3, 8, 8))


def test_epoch_batches_use_the_given_indices_once_and_leave_out_the_last_step():
    indices = torch.arange(7, 46)
    batches = EpochBatches(numbered(50), indices, batch_size=12, seed=0, epoch=0)
    _, labels = join([batches[i] for i in range(len(batches))])
    assert (batches.steps, len(batches), len(labels)) == (3, 3, 36)
    assert len(set(labels.tolist())) == 36
    assert set(labels.tolist()) <= set(indices.tolist())


def test_epoch_batches_leave_out_other_images_each_epoch():
    seen = set()
    for number in range(8):
        batches = epoch(epoch=number, augmentation=None)
        seen |= set(join([batches[i] for i in range(len(batches))])[1].tolist())
    assert seen == set(range(50))


@pytest.mark.parametrize("change", [{"epoch": 2}, {"seed": 6}])
def test_epoch_batches_differ_by_epoch_and_seed(change):
    assert epoch().order.tolist() != epoch(**change).order.tolist()


def test_epoch_batches_draw_new_parameters_for_each_step_and_epoch():
    data = ImageData(
        InMemoryImages(torch.arange(64, dtype=torch.uint8).view(1, 8, 8, 1).repeat(24, 1, 1, 1)),
        torch.zeros(24, dtype=torch.int64),
        ["0"],
        "a/b",
        "train",
        "0",
    )
    batches = [
        EpochBatches(data, torch.arange(24), batch_size=12, seed=0, epoch=i, augmentation=AUGMENTATION)[step][0]
        for i in range(2)
        for step in range(2)
    ]
    for i in range(4):
        for j in range(i):
            assert not torch.equal(batches[i], batches[j])


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 3), (4, 3), (12, 1)])
@pytest.mark.parametrize(
    "more",
    [{}, {"auto_augment": True, "mixup": 0.2, "cutmix": 1.0}, {"trivial_augment": True, "cutmix": 1.0}],
    ids=["plain", "auto_augment_and_mixing", "trivial_augment_and_cutmix"],
)
def test_epoch_batches_of_all_processes_make_the_batches_of_one(world_size, accumulation, more):
    options = {"augmentation": Augmentation(crop_padding=2, flip=True, shift=1, rotation=10, cutout=3, **more)}
    options |= {"classes": 50}
    one = epoch(**options)
    shares = [
        epoch(**options, rank=rank, world_size=world_size, accumulation=accumulation) for rank in range(world_size)
    ]
    for step in range(one.steps):
        parts = [share[step * accumulation + micro_batch] for micro_batch in range(accumulation) for share in shares]
        images, labels = join(parts)
        assert torch.equal(images, one[step][0])
        assert torch.equal(labels, one[step][1])


@pytest.mark.parametrize("options", [{"auto_augment": "imagenet"}, {"trivial_augment": True, "mixup": 1.0}])
def test_an_image_of_an_epoch_is_the_same_in_any_batch_size(options):
    augmentation = Augmentation(crop_padding=2, flip=True, rotation=10, cutout=3, **options)
    epochs = [epoch(48, batch_size=size, augmentation=augmentation, classes=48) for size in (12, 16)]
    images, labels = zip(*(join([batches[i] for i in range(len(batches))]) for batches in epochs), strict=True)
    assert torch.equal(*images)
    assert torch.equal(*labels)


def test_mixed_labels_are_the_shares_of_two_classes():
    augmentation = Augmentation(mixup=1.0, cutmix=1.0)
    images, targets = epoch(augmentation=augmentation, classes=50)[0]
    assert targets.shape == (12, 50)
    assert ((targets > 0).sum(1) <= 2).all()
    assert torch.allclose(targets.sum(1), torch.ones(12))
    # Every pixel of image i is i / 255, so the mean pixel of a mixture is the mean label.
    assert torch.allclose(images.mean((1, 2, 3)), targets @ torch.arange(50.0) / 255, atol=1e-6)


@pytest.mark.parametrize("classes", [None, 49])
def test_epoch_batches_reject_to_mix_labels_that_are_not_classes(classes):
    with pytest.raises(ValueError, match=f"labels must be .* to be mixed; got torch.int64 in 0 to 49 for {classes} "):
        epoch(augmentation=Augmentation(mixup=0.2), classes=classes)


def test_epoch_batches_reject_to_mix_labels_that_are_measured():
    data = replace(numbered(50), labels=torch.rand(50))
    with pytest.raises(ValueError, match=r"labels must be whole numbers .*; got torch\.float32"):
        EpochBatches(
            data, torch.arange(50), batch_size=5, seed=0, epoch=0, augmentation=Augmentation(cutmix=1.0), classes=2
        )


def test_epoch_batches_of_encoded_images_equal_those_in_memory(tmp_path, random_images, write_parquet):
    write_parquet(tmp_path / "train.parquet", random_images(20, 3), [i % 2 for i in range(20)])
    images = [
        EpochBatches(
            load_images(None, tmp_path, streaming=streaming),
            torch.arange(20),
            batch_size=8,
            seed=0,
            epoch=0,
            augmentation=AUGMENTATION,
        )[1][0]
        for streaming in (False, True)
    ]
    assert torch.equal(images[0], images[1])


@pytest.mark.parametrize("start_step", [0, 1, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_loader_continues_at_a_step(start_step, num_workers):
    batches = epoch(accumulation=2)
    loaded = list(train_loader(batches, start_step=start_step, num_workers=num_workers))
    expected = [batches[i] for i in range(2 * start_step, 8)]
    assert len(loaded) == len(expected)
    for (images, labels), (expected_images, expected_labels) in zip(loaded, expected, strict=True):
        assert torch.equal(images, expected_images)
        assert images.stride() == expected_images.stride()
        assert torch.equal(labels, expected_labels)


@pytest.mark.parametrize("images_ahead", [1, 5, 1000])
@pytest.mark.parametrize("more", [{}, {"mixup": 0.2}, {"mixup": 0.2, "cutmix": 1.0}], ids=["plain", "mixup", "both"])
def test_train_loader_augmenting_ahead_changes_nothing(monkeypatch, device, images_ahead, more):
    monkeypatch.setattr("ttfs_triton.train.batches.AUGMENTED_AHEAD", images_ahead * 64)
    augmentation = Augmentation(crop_padding=2, flip=True, auto_augment=True, cutout=3, **more)
    (data,), _ = place_images([numbered(50, 3)], device)
    options = {"batch_size": 12, "seed": 5, "epoch": 1, "rank": 1, "world_size": 2, "accumulation": 3}
    batches = EpochBatches(data, torch.arange(50), augmentation=augmentation, classes=50, **options)
    loaded = list(train_loader(batches, device, start_step=1))
    assert len(loaded) == len(batches) - 3 == 9
    for number, (images, labels) in enumerate(loaded, start=3):
        expected_images, expected_labels = batches[number]
        assert torch.equal(images, expected_images)
        assert images.stride() == expected_images.stride()
        assert torch.equal(labels, expected_labels)


@pytest.mark.parametrize("streaming", [False, True])
def test_train_loader_workers_change_nothing(tmp_path, random_images, write_parquet, streaming):
    write_parquet(tmp_path / "train.parquet", random_images(40, 3, 16, 16), [i % 2 for i in range(40)])
    data = load_images(None, tmp_path, streaming=streaming)
    augmentation = Augmentation(crop_padding=2, flip=True, rotation=10, cutout=3, auto_augment=True)
    batches = EpochBatches(data, torch.arange(40), batch_size=8, seed=0, epoch=0, augmentation=augmentation)
    here, workers = join(list(train_loader(batches))), join(list(train_loader(batches, num_workers=2)))
    assert torch.equal(here[0], workers[0])
    assert torch.equal(here[1], workers[1])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_train_loader_leaves_the_global_random_state_alone(num_workers):
    before = torch.get_rng_state()
    augmentation = Augmentation(crop_padding=2, flip=True, auto_augment=True)
    list(train_loader(epoch(augmentation=augmentation), num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("batch_size", "world_size", "accumulation"), [(12, 5, 1), (12, 2, 4), (0, 1, 1)])
def test_epoch_batches_reject_a_batch_that_does_not_divide(batch_size, world_size, accumulation):
    message = f"batch_size must be a multiple of .*; got {batch_size} for {world_size} x {accumulation}"
    with pytest.raises(ValueError, match=message):
        epoch(batch_size=batch_size, world_size=world_size, accumulation=accumulation)


def test_epoch_batches_reject_a_batch_larger_than_the_data():
    with pytest.raises(ValueError, match="batch_size must be at most the number of training images; got 64 for 50"):
        epoch(batch_size=64)


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_epoch_batches_reject_a_rank_outside_the_world(rank, world_size):
    with pytest.raises(ValueError, match=f"EpochBatches: rank must be in .*; got {rank} of {world_size}"):
        epoch(rank=rank, world_size=world_size)


@pytest.mark.parametrize("index", [-1, 4])
def test_epoch_batches_reject_an_index_outside(index):
    with pytest.raises(IndexError, match=f"EpochBatches: index must be in 0 to 3; got {index}"):
        epoch()[index]


@pytest.mark.parametrize("start_step", [-1, 5])
def test_train_loader_rejects_a_step_outside_the_epoch(start_step):
    with pytest.raises(ValueError, match=f"start_step must be in 0 to 4; got {start_step}"):
        train_loader(epoch(), start_step=start_step)


def test_mixing_takes_few_launches_a_batch(watched_device):
    """What is drawn, is drawn for the epoch; with images and tables on the device, nothing waits for it."""
    (data,), _ = place_images([numbered(50, 3)], watched_device)
    options = {"seed": 0, "augmentation": Augmentation(mixup=0.2, cutmix=1.0), "classes": 50}
    for number in range(2):  # the first epoch takes tables to the device
        with recording() as drawn:
            batches = EpochBatches(data, torch.arange(50), batch_size=12, epoch=number, **options)
    with recording() as record:
        for index in range(len(batches)):
            _ = batches[index]
    assert drawn.operators.total() > 100
    assert record.operators.total() <= 35 * len(batches)
    assert drawn.synchronisations == record.synchronisations == {}
