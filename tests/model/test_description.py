"""config.json: what it holds, what older ones did, and what is refused."""

import json

import pytest

from ttfs_triton.data.events import EventWindows
from ttfs_triton.model import BaseModel, LoadError, ModelDescription, Preprocessing
from ttfs_triton.nn import NetworkConfig, Neuron

NETWORK = NetworkConfig("4C3-P2-8", image_size=(8, 6), classes=3, neuron=Neuron(0.5))
BASE = BaseModel("model.safetensors", "ab" * 32, "org/name", "cd" * 20)
# What training wrote before there was a format 2.
FORMAT_1 = {
    "format_version": 1,
    "network": NETWORK.to_dict(),
    "class_names": ["a", "b", "c"],
    "dataset": "images",
}


@pytest.fixture
def values():
    return ModelDescription.of(NETWORK, class_names=["a", "b", "c"], dataset="sample", base_model=BASE).to_dict()


def test_description_survives_json():
    description = ModelDescription.of(NETWORK, class_names=["a", "b", "ç"], dataset="sample", base_model=BASE)
    values = json.loads(json.dumps(description.to_dict()))
    assert ModelDescription.from_dict(values) == description
    assert values["preprocessing"] == {"size": [8, 6], "mode": "L", "divisor": 255.0, "resize": "bilinear"}
    assert set(values["library"]) == {"name", "version"}


@pytest.mark.parametrize("version", [2, 3])
def test_formats_2_and_3_have_the_same_keys(values, version):
    assert ModelDescription.from_dict(values | {"format_version": version}).base_model == BASE


def test_fit_is_written_where_it_is_not_the_usual_one():
    description = ModelDescription.of(NETWORK, fit="crop")
    values = description.to_dict()
    assert values["preprocessing"]["fit"] == "crop"
    assert ModelDescription.from_dict(values) == description


def test_format_1_keeps_loading():
    description = ModelDescription.from_dict(FORMAT_1)
    assert description.network == NETWORK
    assert (description.class_names, description.dataset) == (("a", "b", "c"), "images")
    assert description.preprocessing == Preprocessing((8, 6), "L")
    assert description.base_model is None
    assert ModelDescription.from_dict(FORMAT_1 | {"class_names": []}).class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (NETWORK, Preprocessing((8, 6), "L")),
        (NETWORK.replace(in_channels=3), Preprocessing((8, 6), "RGB")),
        (NETWORK.replace(in_channels=2), Preprocessing((8, 6), None)),
        (NETWORK.replace(max_value=255.0), Preprocessing((8, 6), "L", 1.0)),
    ],
)
def test_preprocessing_follows_from_the_network(network, expected):
    assert Preprocessing.of(network) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, r"format_version must be 1 to 4; got 99\. Upgrade ttfs-triton"),
        ({"format_version": 0}, "format_version must be 1 to 4; got 0"),
        ({"format_version": "2"}, "values must be an object with a format_version"),
        ({"licence": "mit"}, "keys must be among .* got licence"),
        ({"network": {"specification": "4C3", "colour": 1}}, "values must describe a network; NetworkConfig.from_dict"),
        ({"network": {"specification": "4Q3"}}, "values must describe a network"),
        ({"class_names": ["a", "b"]}, "class_names must be 3 strings, one a class"),
        ({"class_names": [0, 1, 2]}, "class_names must be 3 strings"),
        ({"preprocessing": {"size": [9, 9], "mode": "L"}}, r"preprocessing must give the network's \(8, 6\) in mode L"),
        ({"preprocessing": {"size": [8, 6], "mode": "HSV"}}, 'mode must be "L", "RGB" or None'),
        ({"preprocessing": {"size": [8, 6], "mode": "L", "resize": "cubic"}}, 'resize must be "bilinear"'),
        ({"preprocessing": {"size": [8, 6], "mode": "L", "divisor": 0}}, "divisor must be positive and finite; got 0"),
        ({"preprocessing": {"size": [8, -6], "mode": "L"}}, "size must be two positive sizes"),
        ({"preprocessing": {"size": [8, 6], "mode": "L", "fit": "pad"}}, 'fit must be "stretch" or "crop"; got .pad'),
        ({"preprocessing": {"colour": 1}}, "values must describe a network"),
        ({"base_model": {"file": "a"}}, "values must describe a network"),
        ({"base_model": {"file": 5, "sha256": "a"}}, "BaseModel: file must be text; got 5"),
        ({"base_model": 5}, "values must describe a network"),
        ({"preprocessing": None}, "values must describe a network"),
        ({"preprocessing": {"size": 5, "mode": "L"}}, "size must be two positive sizes"),
        (
            {"preprocessing": {"size": [8, 6], "mode": "L", "divisor": "1"}},
            "divisor must be positive and",
        ),
        (
            {"preprocessing": {"size": [8, 6], "mode": "L", "divisor": float("inf")}},
            "divisor must be positive and",
        ),
        ({"class_names": "abc"}, "class_names must be 3 strings"),
        ({"class_names": 5}, "class_names must be 3 strings"),
        ({"dataset": 5}, "dataset must be text or None; got 5"),
        ({"library": {"name": 5}}, "library must hold texts"),
        ({"library": 5}, "library must hold texts"),
        ({"network": 5}, "network must be an object; got 5"),
        ({"network": {"specification": 5}}, "specification must be text"),
        ({"format_version": True}, "values must be an object with a format_version"),
    ],
)
def test_wrong_values_are_refused(values, change, message):
    with pytest.raises(LoadError, match=message):
        ModelDescription.from_dict(values | change)


@pytest.mark.parametrize("key", ["network", "preprocessing", "library"])
def test_missing_keys_are_named(values, key):
    del values[key]
    with pytest.raises(LoadError, match=f"values must have the key '{key}'"):
        ModelDescription.from_dict(values)


def test_what_events_become_survives_and_fits_the_channels():
    events = EventWindows(3, 105_000, 2, (34, 34))
    description = ModelDescription.of(NETWORK.replace(in_channels=6), events=events)
    values = json.loads(json.dumps(description.to_dict()))
    assert values["preprocessing"]["events"] == {"count": 3, "length_us": 105_000, "pool": 2, "sensor": [34, 34]}
    assert ModelDescription.from_dict(values) == description
    assert "events" not in ModelDescription.of(NETWORK).to_dict()["preprocessing"]  # older versions read on
    with pytest.raises(ValueError, match="half as many windows as the network has channels, 4; got 3"):
        ModelDescription.of(NETWORK.replace(in_channels=4), events=events)
    for wrong in ([], {"count": 0}, {"windows": 3}):
        with pytest.raises(LoadError, match="values must describe a network"):
            ModelDescription.from_dict(values | {"preprocessing": values["preprocessing"] | {"events": wrong}})
