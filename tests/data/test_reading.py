"""Rows in order, decoded ahead only as far as memory allows."""

import datasets
import numpy as np
import pytest
import torch

from ttfs_triton.data import reading
from ttfs_triton.data.reading import read_rows


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(reading, "decoding_threads", lambda: 2)
    return datasets.Dataset.from_dict({"image": list(range(1200))})


def test_rows_come_in_order_whatever_their_size(rows, monkeypatch):
    monkeypatch.setattr(reading, "_AHEAD_BYTES", 100)
    chosen = torch.randperm(1200)[:1100]

    def read(number):
        if number % 7 == 0:
            raise ValueError(number)
        return np.full(number % 90, number)

    found = list(read_rows(rows, chosen, read, progress=False))
    for number, result in zip(chosen.tolist(), found, strict=True):
        if isinstance(result, Exception):
            assert (number % 7, result.args) == (0, (number,))
        else:
            assert number % 7
            assert np.array_equal(result, np.full(number % 90, number))


@pytest.mark.parametrize(("size", "most"), [(reading._AHEAD_BYTES, 3), (reading._AHEAD_BYTES // 4, 12), (1, 96)])
def test_large_images_are_not_decoded_ahead(rows, size, most):
    started = []

    def read(number):
        started.append(number)
        return np.empty(size, np.uint8)

    results = read_rows(rows, torch.arange(1200), read, progress=False)
    for taken in range(1, 100):
        next(results)
        assert len(started) <= taken + most
