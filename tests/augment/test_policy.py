"""Policies against torchvision's lists."""

import pytest
import torch
from torchvision.transforms import v2

from ttfs_triton.augment.policy import (
    PLAIN,
    auto_augment_policy,
    magnitudes,
    policy_tables,
    trivial_augment_policy,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["cifar10", "svhn", "imagenet"])
def test_auto_augment_policy_is_that_of_torchvision(name):
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy(name))._policies
    ours = auto_augment_policy(name, 32, 48)
    assert len(ours) == len(theirs) == 25
    for our_pair, their_pair in zip(ours, theirs, strict=True):
        for (operation, probability, magnitude), (their_operation, their_probability, level) in zip(
            our_pair, their_pair, strict=True
        ):
            assert (operation, probability) == (their_operation, their_probability)
            if operation not in PLAIN:
                assert magnitude == magnitudes(operation, 32, 48)[level]


@pytest.mark.parametrize(
    ("space", "bins"), [(v2.AutoAugment._AUGMENTATION_SPACE, 10), (v2.TrivialAugmentWide._AUGMENTATION_SPACE, 31)]
)
def test_magnitudes_are_those_of_torchvision(space, bins):
    for name, (values, _) in space.items():
        if name not in PLAIN:
            assert magnitudes(name, 32, 48, wide=bins == 31) == values(bins, 32, 48).tolist()


def test_trivial_augment_policy_has_each_operation_of_torchvision_at_each_magnitude():
    policy = trivial_augment_policy(32, 32)
    assert {operation.name for (operation,) in policy} == set(v2.TrivialAugmentWide._AUGMENTATION_SPACE)
    assert len(policy) == 14 * 31
    assert {operation.probability for (operation,) in policy} == {1.0}


def words(applied, choice=0, negative=0) -> torch.Tensor:
    """Random words of images that draw a sub-policy of 25, two words to be compared with probabilities, two signs."""
    drawn = torch.zeros(len(applied), 12, dtype=torch.int64)
    drawn[:, 3] = (torch.as_tensor(choice) << 32) // 25 + 1
    drawn[:, 4:6] = torch.as_tensor(applied)
    drawn[:, 6] = torch.as_tensor(negative) << 30
    return drawn


def test_rows_follow_sub_policy_stage_sign_and_probability():
    tables = policy_tables("cifar10", 32, 32, CPU)
    assert tables.kinds.shape == (1 + 25 * 2 * 2,)
    never, always = 2**32 - 1, 0
    applied = [[always, never], [never, always], [always, always], [always, never], [never, always]]
    # The last one is an inversion with probability 0.
    rows = tables.draw(words(applied, choice=[0, 0, 3, 24, 14], negative=[0b00, 0b11, 0b10, 0b01, 0b00]))
    assert rows.tolist() == [[1, 0], [0, 4], [14, 15], [97, 0], [0, 0]]


def test_rows_are_applied_with_the_probability_of_the_policy():
    tables = policy_tables("imagenet", 32, 32, CPU)
    word = torch.arange(0, 2**32, 2**22)
    rows = tables.draw(words(torch.stack([word, word], 1), choice=7))
    assert (rows > 0).sum(0).tolist() == [820, 1024]  # 0.8 and 1
