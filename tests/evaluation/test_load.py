"""The images that a network is scored on; what cannot be loaded is in tests/model."""

import numpy as np
import pytest
import torch

from tests.data.fixtures import write_parquet
from ttfs_triton import TTFSModel
from ttfs_triton.evaluation import load_network, load_test_images


def test_test_images_are_those_of_the_run(trained):
    run, data = trained
    images = load_test_images(load_network(run))
    assert (len(images), images.split) == (45, "test")
    assert len(load_test_images(load_network(run / "best"), data_dir=data, max_samples=7)) == 7
    with pytest.raises(ValueError, match="must name a data set on the Hub; got None"):
        load_test_images(load_network(run / "best"))
    with pytest.raises(ValueError, match="images must be"):
        load_test_images(load_network(run), dataset="sample")


def test_columns_can_be_named_and_classes_have_the_order_of_the_network(trained, tmp_path):
    network, pixels = load_network(trained[0]), np.zeros((4, 8, 8), dtype=np.uint8)
    columns = {"image": "picture", "more": {"label2": [0, 0, 0, 0]}}
    write_parquet(tmp_path / "test.parquet", pixels, [0, 1, 2, 3], names=["a", "b", "c", "d"], **columns)
    images = load_test_images(network, data_dir=tmp_path, image_column="picture", label_column="label")
    assert images.labels.tolist() == [0, 1, 2, 3]
    write_parquet(tmp_path / "test.parquet", pixels, [0, 1, 2, 3], names=["b", "a", "c", "d"])
    with pytest.raises(ValueError, match=r"must be in the order \['a', 'b', .*; got \['b', 'a', "):
        load_test_images(network, data_dir=tmp_path)
    write_parquet(tmp_path / "test.parquet", pixels, [0, 1, 2, 3], names=["ankle", "bag", "coat", "dress"])
    with pytest.warns(UserWarning, match=r"classes are a, b, c, …; those of the test images are ankle, bag, coat, …\."):
        assert len(load_test_images(network, data_dir=tmp_path)) == 4


def test_weights_are_finite_and_of_one_precision(trained, tmp_path):
    image = torch.rand(1, 1, 8, 8)
    expected = load_network(trained[0]).network(image)
    for precision, tolerance in ((torch.float64, 0.0), (torch.float16, 1e-2)):
        TTFSModel.from_pretrained(trained[0]).to(precision).save_pretrained(tmp_path / str(precision))
        found = load_network(tmp_path / str(precision)).network(image)
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    broken = TTFSModel.from_pretrained(trained[0])
    with torch.no_grad():
        next(broken.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=r"weights must be finite; got 1 of \d+ values of .*conv1"):
        broken.save_pretrained(tmp_path / "broken")
