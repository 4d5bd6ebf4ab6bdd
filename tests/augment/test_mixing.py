"""MixUp and CutMix against their definitions, image by image."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttfs_triton.augment import Augmentation, draw_mixing, mix
from ttfs_triton.augment.augmentation import beta_quantiles

N = 2000


def draw(indices: torch.Tensor, among: torch.Tensor | None = None, seed: int = 0, epoch: int = 0, **options: float):
    among = torch.arange(50) if among is None else among
    return draw_mixing(Augmentation(**options), seed, epoch, indices, among, 16, 24)


def drawn_weights(indices: torch.Tensor, **options: float):
    """Share of the partner at each pixel: [n, 16, 24]."""
    return draw(indices, **options).weights(16, 24).expand(-1, 1, 16, 24)[:, 0]


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 2.0, 8.0])
def test_beta_quantiles_have_the_moments_of_the_distribution(alpha):
    quantiles = beta_quantiles(alpha, 4096)
    assert (np.diff(quantiles) >= 0).all()
    assert np.allclose(quantiles, 1 - quantiles[::-1])
    variance = 1 / (4 * (2 * alpha + 1))
    assert quantiles.var() == pytest.approx(variance, rel=2e-3)
    fourth = variance**2 * (3 - 6 / (2 * alpha + 3))  # kurtosis of Beta(α, α)
    assert ((quantiles - 0.5) ** 4).mean() == pytest.approx(fourth, rel=2e-3)
    assert alpha != 1 or np.allclose(quantiles, (np.arange(4096) + 0.5) / 4096)


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_of_an_image_depends_on_its_key_only(options):
    whole, part = draw(torch.arange(40), **options), draw(torch.arange(13, 20), **options)
    assert torch.equal(whole.partners[13:20], part.partners)
    assert torch.equal(whole.weights(16, 24)[13:20], part.weights(16, 24))
    assert torch.equal(whole[13:20].weights(16, 24), part.weights(16, 24))
    assert torch.equal(whole[13:20].shares, part.shares)
    assert not torch.equal(draw(torch.arange(40), epoch=1, **options).partners, whole.partners)
    assert not torch.equal(draw(torch.arange(40), seed=1, **options).shares, whole.shares)


def test_partners_are_any_of_the_images_to_train_on():
    among = torch.tensor([3, 14, 15, 92])
    partners = draw(torch.arange(N), among, mixup=1.0).partners
    assert partners.unique().tolist() == among.tolist()


def test_mixup_takes_one_share_of_the_whole_image():
    mixing = draw(torch.arange(N), mixup=1.0)
    assert mixing.weights(16, 24).shape == (N, 1, 1, 1)
    assert torch.equal(mixing.weights(16, 24).flatten(), mixing.shares)
    assert abs(float(mixing.shares.mean()) - 0.5) < 5 * (1 / 12 / N) ** 0.5


def test_cutmix_takes_a_rectangle_of_the_images_proportions():
    weights = drawn_weights(torch.arange(N), cutmix=1.0)
    assert weights.unique().tolist() == [0, 1]
    rows, columns = weights.amax(2), weights.amax(1)
    assert torch.equal(weights, rows[:, :, None] * columns[:, None, :])
    for ends in (rows, columns):  # one interval
        assert (ends.diff(dim=1).abs().sum(1) <= 2).all()
    # Not clipped by the border, sides are those of the image times one factor.
    inner = (rows[:, 0] + rows[:, -1] + columns[:, 0] + columns[:, -1] == 0) & (rows.sum(1) > 0)
    assert inner.sum() > 100
    assert ((columns.sum(1) / 24 - rows.sum(1) / 16)[inner].abs() < 1 / 16).all()


def test_both_are_drawn_equally_often():
    weights = drawn_weights(torch.arange(N), mixup=1.0, cutmix=1.0)
    fractional = ((weights > 0) & (weights < 1)).flatten(1).any(1).double()
    assert abs(float(fractional.mean()) - 0.5) < 5 * 0.5 / math.sqrt(N)


@given(
    st.integers(0, 1000),
    st.sampled_from([1, 3]),
    st.sampled_from([{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}]),
)
def test_mix_weighs_pixels_and_labels_alike(seed, channels, options):
    generator = torch.Generator().manual_seed(seed)
    images, partners = torch.rand(2, 6, channels, 16, 24, generator=generator)
    labels, partner_labels = torch.randint(0, 3, (2, 6), generator=generator)
    mixing = draw(torch.arange(6), seed=seed, **options)
    mixed, targets = mix(images, labels, partners, partner_labels, mixing, 3)
    weights = mixing.weights(16, 24).expand(-1, 1, 16, 24)
    expected = images.double() + weights.double() * (partners.double() - images.double())
    assert torch.allclose(mixed.double(), expected, atol=1e-6)
    taken = (weights == 1).expand_as(images)
    assert torch.equal(mixed[taken], partners[taken])
    for i in range(6):
        row = [0.0] * 3
        row[labels[i]] += 1 - float(weights[i].mean())
        row[partner_labels[i]] += float(weights[i].mean())
        assert targets[i].tolist() == pytest.approx(row, abs=1e-6)
