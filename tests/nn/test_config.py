import dataclasses
import json

import pytest

from ttfs_triton.nn import NetworkConfig, Neuron

ANALOG = {"specification": "8C3-P2-16", "in_channels": 3, "encoder": "analog"}


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig("16C5-P2-128", neuron=Neuron(0.25, None, 0.5)),
        NetworkConfig(
            **ANALOG, image_size=(32, 24), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), neuron=Neuron(0.25, None)
        ),
        NetworkConfig("128", batch_norm=True, dropout=0.5, width=0.5),
    ],
)
def test_config_goes_through_json(config):
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_config_is_written_flat():
    """What files of every version hold; `neuron` and `backend` are for older readers."""
    written = NetworkConfig("128", neuron=Neuron(0.25, None)).to_dict()
    assert " ".join(written) == (
        "specification in_channels image_size classes width encoder max_value mean std readout psp_persistence "
        "derivative_clip surrogate_width bias weight_standardisation initial_gain batch_norm dropout neuron backend"
    )
    assert (written["psp_persistence"], written["derivative_clip"], written["neuron"]) == (0.25, None, "dft")
    assert NetworkConfig.from_dict(written | {"backend": "triton"}).to_dict() == written


def test_old_configurations_without_newer_keys_load():
    assert NetworkConfig.from_dict({"specification": "128", "psp_persistence": 0.5}).neuron == Neuron(0.5)


def test_neuron_must_be_one():
    with pytest.raises(ValueError, match=r"neuron must be a Neuron; got 'ann'\. An ANN is Neuron\(psp_persistence=0\)"):
        NetworkConfig("128", neuron="ann")


def test_config_is_frozen_and_replaced():
    config = NetworkConfig("128")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.classes = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert config.replace(classes=3).classes == 3
    with pytest.raises(ValueError, match="classes must be at least 1 and at most 1048576; got 0"):
        config.replace(classes=0)


def test_config_scales_sizes():
    config = NetworkConfig("128", width=0.3)
    assert (config.scaled(64), config.scaled(1)) == (19, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"specification": "128", "depth": 3, "colour": 1}, "keys must be among .*; got colour, depth"),
        ({"classes": 3}, r"values must have a specification; got \['classes'\]"),
        ({"specification": "12x"}, 'got "12x"'),
        (
            {"specification": "128", "encoder": "rate"},
            "encoder must be one of latency, analog, whitened, signed; got rate",
        ),
        ({"specification": "128", "readout": "count"}, "readout must be one of"),
        ({"specification": "128", "neuron": "lif"}, "neuron must be one of dft, ann; got lif"),
        ({"specification": "128", "encoder": "analog"}, "specification must start with a convolution"),
        ({**ANALOG, "max_value": 255.0}, "max_value must be 1 .* Use mean and std"),
        ({"specification": "128", "std": [0.5]}, "mean and std must be None .* Use max_value"),
        ({"specification": "12C2", "encoder": "whitened"}, 'start with 8 channels for encoder="whitened"'),
        ({"specification": "128", "in_channels": 0}, "in_channels must be at least 1 and at most 4096; got 0"),
        ({"specification": "128", "image_size": [28]}, r"image_size must be two positive sizes.*got \(28,\)"),
        ({"specification": "128", "width": 0.0}, "width must be positive, from 1e-06 to 1e\\+06; got 0.0"),
        ({"specification": "128", "initial_gain": float("inf")}, "initial_gain must be a finite number; got inf"),
        ({"specification": "128", "derivative_clip": -1.0}, "derivative_clip must be positive or None; got -1.0"),
        ({"specification": "128", "psp_persistence": 2.0}, r"psp_persistence must lie in \[0, 1\]; got 2.0"),
        ({"specification": "128", "dropout": 1.0}, r"dropout must be in \[0, 1\); got 1.0"),
        ({**ANALOG, "mean": [0.5]}, r"mean must have one entry per channel \(3\); got \(0.5,\)"),
        ({**ANALOG, "std": [0.5, 0.0, 1.0]}, "std must be positive"),
        ({**ANALOG, "mean": [0.5, 0.0, 1e300]}, r"mean must have entries up to 1e\+06"),
        ({**ANALOG, "mean": [0.5, None, 1]}, "mean must be a tuple of finite numbers"),
        ({**ANALOG, "mean": 10**400}, "mean must be a tuple of finite numbers"),
        ({"specification": 5}, "specification must be text of at most 4096 characters; got 5"),
        ({"specification": "1C1-" * 2000 + "8"}, "specification must be text of at most 4096 characters; got 8001"),
        ({"specification": "128", "classes": 10**12}, "classes must be .* at most 1048576; got 1000000000000"),
        ({"specification": "128", "classes": 10.0}, "classes must be a whole number; got 10.0"),
        ({"specification": "128", "classes": True}, "classes must be a whole number; got True"),
        ({"specification": "128", "image_size": [28, "28"]}, "image_size must be a tuple of whole numbers"),
        ({"specification": "128", "image_size": [28, 10**6]}, "image_size must be two positive sizes up to 16384"),
        ({"specification": "128", "width": 1e308}, r"width must be positive, from 1e-06 to 1e\+06; got 1e\+308"),
        ({"specification": "128", "width": 1e5}, "width must give no layer more than 1048576 neurons or channels"),
        ({"specification": "128", "width": 10**400}, "width must be a finite number"),
        ({"specification": "128", "max_value": "9"}, "max_value must be a finite number; got '9'"),
        ({"specification": "128", "bias": "no"}, "bias must be True or False; got 'no'"),
        ({"specification": "128", "encoder": ["latency"]}, "encoder must be one of latency, analog"),
        ({"specification": "128", "neuron": {}}, "neuron must be one of dft, ann"),
        ({"specification": "128", "psp_persistence": "1"}, "psp_persistence must be a number; got '1'"),
    ],
)
def test_config_rejects(values, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig.from_dict(values)
