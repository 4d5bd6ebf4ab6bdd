"""One small trained network for all tests here."""

import json

import pytest

from tests.train.conftest import _own_cache, write_parquet  # noqa: F401
from tests.train.runs import make_images, run


@pytest.fixture(scope="session")
def trained(tmp_path_factory, write_parquet):  # noqa: F811
    """Folders (run, images) of a run of one epoch on 8×8 images."""
    folder = tmp_path_factory.mktemp("evaluation")
    data = make_images(folder / "images", write_parquet)
    result = run(folder, data, folder / "run", settings="\nepochs: 1\n")
    assert result.returncode == 0, result.stderr
    return folder / "run", data


@pytest.fixture(scope="session")
def summary(trained):
    return json.loads((trained[0] / "summary.json").read_text())
