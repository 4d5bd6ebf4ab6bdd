"""The images that a network is scored on; what cannot be loaded is in tests/model."""

import numpy as np
import pytest

from tests.train.conftest import write_parquet  # noqa: F401
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


def test_columns_can_be_named_and_classes_have_the_order_of_the_network(trained, tmp_path, write_parquet):  # noqa: F811
    network, pixels = load_network(trained[0]), np.zeros((4, 8, 8), dtype=np.uint8)
    columns = {"image": "picture", "more": {"label2": [0, 0, 0, 0]}}
    write_parquet(tmp_path / "test.parquet", pixels, [0, 1, 2, 3], names=["a", "b", "c", "d"], **columns)
    images = load_test_images(network, data_dir=tmp_path, image_column="picture", label_column="label")
    assert images.labels.tolist() == [0, 1, 2, 3]
    write_parquet(tmp_path / "test.parquet", pixels, [0, 1, 2, 3], names=["b", "a", "c", "d"])
    with pytest.raises(ValueError, match=r"must be in the order \['a', 'b', .*; got \['b', 'a', "):
        load_test_images(network, data_dir=tmp_path)
