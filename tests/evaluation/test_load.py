"""Networks from runs and weights, and what cannot be loaded."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.train.conftest import write_parquet  # noqa: F401
from ttfs_triton.evaluation import LoadError, load_network, load_test_images


def test_run_folder_and_weights_give_the_same_network(trained):
    run, _ = trained
    loaded = load_network(run)
    assert (loaded.files.run, loaded.files.name, loaded.description.dataset) == (run, "run", None)
    assert loaded.network.class_names == ("a", "b", "c", "d")
    assert not loaded.network.training
    images = torch.rand(3, 1, 8, 8)
    for path in (run / "best", run / "best" / "model.safetensors"):
        again = load_network(path)
        assert (again.files.run, again.files.name) == (None, "best")
        assert torch.equal(again.network(images), loaded.network(images))


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


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained[0] / "best", tmp_path / "copy")


def test_refuses_what_is_not_there(tmp_path, copy):
    with pytest.raises(LoadError, match="there is nothing at"):
        load_network(tmp_path / "nowhere")
    with pytest.raises(LoadError, match=r"must hold best/model\.safetensors"):
        load_network(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"pickle")
    with pytest.raises(LoadError, match=r"a folder or a \.safetensors file"):
        load_network(tmp_path / "weights.pt")
    (copy / "config.json").unlink()
    with pytest.raises(LoadError, match="must say what network the weights are of"):
        load_network(copy)


def test_refuses_damaged_files(copy):
    weights, config = copy / "model.safetensors", copy / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoadError, match="must be a whole safetensors file"):
        load_network(copy)
    weights.write_bytes(whole)
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"format_version": 99}))
    with pytest.raises(LoadError, match=r"config\.json must be as it was written with the weights"):
        load_network(copy)
