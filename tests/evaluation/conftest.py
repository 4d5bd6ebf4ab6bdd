"""One small trained network for all tests here."""

import json

import pytest

from tests.data.fixtures import _own_cache  # noqa: F401
from tests.train.runs import make_images, run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folders (run, images) of a run of one epoch on 8×8 images."""
    folder = tmp_path_factory.mktemp("evaluation")
    data = make_images(folder / "images")
    result = run(folder, data, folder / "run", epochs=1)
    assert result.returncode == 0, result.stderr
    return folder / "run", data


@pytest.fixture(scope="session")
def summary(trained):
    return json.loads((trained[0] / "summary.json").read_text())
