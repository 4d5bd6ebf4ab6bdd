"""config.json: what it holds, what older ones did, and what is refused."""

import json

import pytest

from ttfs_triton.data.events import EventWindows
from ttfs_triton.model import BaseModel, LoadError, ModelDescription, Preprocessing, TTFSModel
from ttfs_triton.nn import NetworkConfig, Neuron

NETWORK = NetworkConfig("4C3-P2-8", image_size=(8, 6), classes=3, neuron=Neuron(0.5))
BASE = BaseModel("model.safetensors", "ab" * 32, "org/name", "cd" * 20)
DESCRIPTION = ModelDescription.of(NETWORK, class_names=["a", "b", "ç"], dataset="sample", base_model=BASE)
SIZE = {"size": [8, 6], "mode": "L"}


def test_description_survives_json():
    values = DESCRIPTION.to_dict()
    assert ModelDescription.from_dict(json.loads(json.dumps(values))) == DESCRIPTION
    usual = {"divisor": 255.0, "resize": "bilinear", "fit": "stretch", "events": None}
    assert (values["preprocessing"], set(values["library"])) == (SIZE | usual, {"name", "version"})
    for channels, mode, fit in ((1, "L", "crop"), (3, "RGB", "stretch"), (2, None, "stretch")):
        description = ModelDescription.of(NETWORK.replace(in_channels=channels), fit=fit)
        assert ModelDescription.from_dict(description.to_dict()).preprocessing == Preprocessing((8, 6), mode, fit=fit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"format_version": wrong}, f"format_version must be 3 or 4; got {wrong}. Upgrade") for wrong in (99, True)),
        ({"licence": "mit"}, "licence: there is no such key; got 'mit'"),
        ({"network": 5}, "network: must be an object; got 5"),
        ({"network": {"specification": "4Q3"}}, "network: "),
        ({"network": NETWORK.to_dict() | {"specification": "\uff14C3-P2-8"}}, "specification must be "),
        ({"network": {"builder": "own.py:build"}}, "network.layers: Field required"),
        ({"class_names": ["a", "b"]}, "class_names must be 3 strings, one per class"),
        ({"class_names": ["a", "b", "a"]}, r"class_names must differ; got \('a', 'b', 'a'\)"),
        ({"class_names": [0, 1, 2]}, "class_names.0: Input should be a valid string; got 0"),
        ({"preprocessing": {"size": [9, 9], "mode": "L"}}, r"preprocessing must be the network's, .*size=\(8, 6\)"),
        ({"preprocessing": SIZE | {"mode": "HSV"}}, "mode: Input should be 'L' or 'RGB'; got 'HSV'"),
        ({"preprocessing": SIZE | {"divisor": 1.0}}, r"must be the network's, .*divisor=255\.0.*; got .*divisor=1\.0"),
        ({"base_model": {"file": "a"}}, "base_model.sha256: Field required"),
        ({"library": {"name": 5}}, "library.name: Input should be a valid string; got 5"),
    ],
)
def test_wrong_values_are_refused(change, message):
    with pytest.raises(LoadError, match=message):
        ModelDescription.from_dict(DESCRIPTION.to_dict() | change)


def test_event_windows_survive_json_and_fit_the_channels():
    events = EventWindows(3, 105_000, 2, (34, 34))
    description = ModelDescription.of(NETWORK.replace(in_channels=6), events=events)
    values = json.loads(json.dumps(description.to_dict()))
    assert values["preprocessing"]["events"] == {"count": 3, "length_us": 105_000, "pool": 2, "sensor": [34, 34]}
    assert ModelDescription.from_dict(values) == description
    model = TTFSModel(description.network)
    model._description = description
    assert 'classify("recording.npz")' in model._plain_card("a/b", None)
    with pytest.raises(ValueError, match="half as many windows as the network has channels, 4; got 3"):
        ModelDescription.of(NETWORK.replace(in_channels=4), events=events)
    for wrong in ([], {"count": 0}, {"windows": 3}):
        with pytest.raises(LoadError, match="values must describe a network"):
            ModelDescription.from_dict(values | {"preprocessing": values["preprocessing"] | {"events": wrong}})
