"""The images that a network is scored on; what cannot be loaded is in tests/model."""

import numpy as np
import pytest
import torch

from tests.data.fixtures import write_parquet
from ttfs_triton import TTFSModel
from ttfs_triton.data.images import load_images
from ttfs_triton.evaluate.load import load_network, load_test_images
from ttfs_triton.nn import NetworkConfig


@pytest.fixture
def plain(tmp_path):
    """A folder with a network for 8×8 images of four classes; nothing says on which data it was trained."""
    config = NetworkConfig("4C5-P4-16", image_size=(8, 8), classes=4)
    TTFSModel(config, class_names=list("abcd")).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_test_images_are_those_of_the_run(trained, plain, tmp_path):
    for folder in (trained, trained / "best"):  # config.yaml, and without it config.json, name the data set
        images = load_test_images(load_network(folder), max_samples=7)
        assert (len(images), images.split, images.dataset) == (7, "test", "sample")
    with pytest.raises(ValueError, match="must name a data set on the Hub; got None"):
        load_test_images(load_network(plain))
    write_parquet(tmp_path / "test.parquet", np.zeros((4, 8, 8, 3), dtype=np.uint8), [0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"images of .* must be \(1, 8, 8\) .*; got \(3, 8, 8\)"):
        load_test_images(load_network(plain), data_dir=tmp_path)
    with pytest.raises(ValueError, match="must have 4 classes, as the network; got 10"):
        load_test_images(load_network(plain), dataset="sample")


def test_columns_can_be_named_and_classes_have_the_order_of_the_network(plain, tmp_path, caplog):
    network, pixels = load_network(plain), np.zeros((4, 8, 8), dtype=np.uint8)
    more = {"label2": [0, 0, 0, 0]}
    write_parquet(tmp_path / "test.parquet", pixels, [0, 1, 2, 3], names=list("abcd"), image="picture", more=more)
    images = load_test_images(network, data_dir=tmp_path, image_column="picture", label_column="label")
    assert images.labels.tolist() == [0, 1, 2, 3]
    write_parquet(tmp_path / "test.parquet", pixels, [0, 1, 2, 3], names=["b", "a", "c", "d"])
    with pytest.raises(ValueError, match=r"must be in the order \['a', 'b', .*; got \['b', 'a', "):
        load_test_images(network, data_dir=tmp_path)
    write_parquet(tmp_path / "test.parquet", pixels, [0, 1, 2, 3], names=["ankle", "bag", "coat", "dress"])
    assert len(load_test_images(network, data_dir=tmp_path)) == 4
    assert "classes are a, b, c, …, but the test images have ankle, bag, coat, …." in caplog.text


def test_split_without_images_of_a_class_is_scored_as_training_scores_it(plain, tmp_path, caplog):
    network, pixels = load_network(plain), np.zeros((3, 8, 8), dtype=np.uint8)
    write_parquet(tmp_path / "train.parquet", pixels[[0, 0, 0, 0]], list("abcd"))
    train = load_images(None, tmp_path)
    for given, labels, lacking in ((["a", "d", "b"], [0, 3, 1], "c"), ([0, 2, 1], [0, 2, 1], "d")):
        write_parquet(tmp_path / "test.parquet", pixels, given)
        caplog.clear()
        found = load_test_images(network, data_dir=tmp_path)
        assert (found.labels.tolist(), found.class_names) == (labels, list("abcd"))
        assert f"the test split of {tmp_path} has no images of {lacking}." in caplog.text
        assert found.fingerprint == load_images(None, tmp_path, split="test", like=train).fingerprint
    assert "labels are numbers in the test split of" in caplog.text
    assert "taken for the classes a, b, c, d, in order" in caplog.text


def test_networks_compute_in_float32_whatever_their_files_hold(plain, tmp_path):
    image = torch.rand(1, 1, 8, 8)
    expected = load_network(plain).network(image)
    for precision, tolerance in ((torch.float64, 0.0), (torch.float16, 1e-2)):
        TTFSModel.from_pretrained(plain).to(precision).save_pretrained(tmp_path / str(precision))
        found = load_network(tmp_path / str(precision)).network(image)
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
