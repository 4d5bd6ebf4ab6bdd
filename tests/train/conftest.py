"""Fixtures: a small image data set, the configuration of a run on it, a teacher network, and a local Hub server."""

from pathlib import Path

import pytest
import torch

from tests.hub.conftest import here, hub  # noqa: F401
from tests.train.runs import SETTINGS, make_images
from ttfs_triton import TTFSModel
from ttfs_triton.nn import NetworkConfig
from ttfs_triton.train import TrainConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def config(data, tmp_path) -> TrainConfig:
    return TrainConfig(**SETTINGS, data_dir=data, output_dir=tmp_path / "run")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """Folder of an untrained network with batch norm, for the images of these runs."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(1)
    network = NetworkConfig("6C3-P2-12", image_size=(8, 8), classes=4, batch_norm=True)
    TTFSModel(network, class_names=["a", "b", "c", "d"]).save_pretrained(folder)
    return folder
