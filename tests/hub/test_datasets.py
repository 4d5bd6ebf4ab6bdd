"""What a card claims about the data."""

import pytest

from ttfs_triton.data.sources import SAMPLE
from ttfs_triton.hub.datasets import KNOWN, training_data, without_paths
from ttfs_triton.nn import NetworkConfig

MNIST = NetworkConfig("4C3-P2-8", image_size=(28, 28), classes=10)


@pytest.mark.parametrize(
    ("settings", "recorded", "stated", "expected"),
    [
        ({"dataset": "ylecun/mnist"}, "ylecun/mnist", None, ("ylecun/mnist", "MNIST", False)),
        ({"dataset": "ylecun/mnist"}, None, None, (None, "a data set that is not named", False)),  # config.yaml edited
        ({"dataset": "ylecun/mnist"}, "some/photos", None, (None, "a data set that is not named", False)),
        ({"dataset": "ylecun/mnist", "data_dir": "/home/alice/m"}, "m", None, (None, "a local data set", True)),
        ({"dataset": "sample", "data_dir": "/home/alice/sample"}, "sample", None, (None, "a local data set", True)),
        ({"dataset": "uoft-cs/cifar100"}, "uoft-cs/cifar100", None, (None, "a data set that is not named", False)),
        ({"dataset": "uoft-cs/cifar10", "data_dir": "/home/alice/m"}, "m", None, (None, "a local data set", True)),
        ({"dataset": "some/photos", "data_dir": "/home/alice/m"}, "m", None, (None, "a local data set", True)),
        ({"dataset": None, "data_dir": "/home/alice/m"}, "m", None, (None, "a local data set", True)),
        ({"data_dir": "/home/alice/m"}, "m", "ylecun/mnist", ("ylecun/mnist", "MNIST", True)),
        ({"dataset": "some/photos"}, "some/photos", None, ("some/photos", "some/photos", False)),
        ({}, "ylecun/mnist", None, ("ylecun/mnist", "MNIST", False)),
        ({}, "alice-secret", None, (None, "a data set that is not named", False)),
        ({}, None, None, (None, "a data set that is not named", False)),
    ],
)
def test_only_what_is_known_is_claimed(settings, recorded, stated, expected):
    found = training_data(settings, recorded, MNIST, stated)
    assert (found.id, found.name, found.local) == expected
    assert (found.licence is not None) == (found.name == "MNIST")
    assert found.recorded == found.seen == (None if found.local else expected[0])


def test_sample_goes_by_its_name():
    found = training_data({"dataset": SAMPLE}, SAMPLE, MNIST)
    assert (found.id, found.recorded, found.licence, found.test_images) == (None, SAMPLE, "MIT", 1000)


def test_known_data_sets_have_licences_and_sources():
    assert all(data.licence and data.source and data.test_images and data.classes for data in KNOWN.values())


def test_stated_name_must_be_one():
    with pytest.raises(ValueError, match="dataset must be \"sample\" or owner/name on the Hub; got '/home/alice/m'"):
        training_data({}, None, MNIST, "/home/alice/m")


@pytest.mark.parametrize(
    ("value", "published"),
    [
        ("/home/alice/x.yaml", "x.yaml"),
        ("~/x.yaml", "x.yaml"),
        ("../x", "x"),
        (r"C:\Users\alice\x", "x"),
        ("16C5-P2-128", "16C5-P2-128"),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_paths_become_names(value, published):
    assert without_paths(value) == published
