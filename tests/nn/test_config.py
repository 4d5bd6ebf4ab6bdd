"""Network configurations: specifications as papers write them, values that are refused, JSON."""

import json

import pytest

from ttfs_triton.nn import Grid, NetworkConfig, Neuron
from ttfs_triton.nn.config import Convolution, Dense, Pool, parse_specification


def test_parse_reads_the_papers_network_strides_spaces_and_blocks():
    papers = (Convolution(16, 5, 2, 1), Pool(2, 2), Convolution(32, 5, 0, 1), Pool(2, 2), Dense(128))
    assert parse_specification("16C5-P2-32C5p0-P2-128") == papers
    assert parse_specification("8C1p0s3 - P3p1s2") == (Convolution(8, 1, padding=0, stride=3), Pool(3, 2, padding=1))
    block = Convolution(8, 3, padding=1, stride=2), Convolution(8, 3, padding=1, stride=1, skip=1)
    blocks = (Convolution(4, 3, 1, 1), *block, *block, Pool(2, 2), Dense(16), Dense(16), Dense(16, skip=2))
    assert parse_specification("4C3-(8C3s2 - 8C3)x2-P2-(16-16-16)") == blocks


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        *((wrong, "a block must be of two or more .*; got") for wrong in ("(8C3)", "(8C3-P2)", "(8C3-8C3)x0")),
        ("(8C3-8C3", "a block must be of two or more|must look like"),
        ("(8-8)x9999", "specification must have at most 2048 layers"),
        ("(8-8)-8C3", "must come before fully connected layers"),
        ("16C5-Q2-128", r'must look like "64C3", "64C3p0s2", "P2", "A2" or "128"; got "Q2" in "16C5-Q2-128"'),
        ("16C5--128", 'got ""'),
        ("99999999C3", 'size must be from 1 to 1048576; got "99999999C3"'),
        ("8C3p2000", 'padding must be from 0 to 1024; got "8C3p2000"'),
        ("1" * 5000, "specification must be text of at most 4096 ASCII characters; got .1111"),
        *((f"{wrong}C3", 'an average must follow a convolution or pool.*; got "A') for wrong in ("4C3-A-4", "A2-4")),
        ("4C3-A2-8", 'an average must follow a convolution or pool.*; got "A2"'),
        ("4C3-A0-4C3", 'kernel_size must be from 1 to 1024; got "A0"'),
        ("16C3-128-P2", 'convolutions and pools must come before fully connected layers; got "P2"'),
    ],
)
def test_parse_names_the_bad_token(specification, message):
    with pytest.raises(ValueError, match=message):
        parse_specification(specification)


ANALOG = {"specification": "8C3-P2-16", "in_channels": 3, "encoder": "analog"}


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(**ANALOG, image_size=(32, 24), mean=(0.1,) * 3, std=(1.0,) * 3, neuron=Neuron(0.25, None)),
        NetworkConfig("128", grid=Grid(4, 2, per_channel=False)),
    ],
)
def test_config_goes_through_json_flat(config):
    """The keys of config.json. Older files have three more."""
    written = json.loads(json.dumps(config.to_dict()))
    assert NetworkConfig.from_dict(written) == config
    assert " ".join(written) == (
        "specification in_channels image_size classes width encoder mean std readout bias weight_standardisation "
        "initial_gain batch_norm dropout grid psp_persistence derivative_clip surrogate_width split_gradient"
    )
    older = {"backend": "triton", "neuron": "dft", "max_value": 1.0}
    assert NetworkConfig.from_dict(written | older) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 3, "colour": 1}, r"2 validation errors for NetworkConfig\ndepth\n +Unexpected keyword"),
        ({"specification": "12x"}, 'got "12x"'),
        ({"specification": 5}, r"specification\n +Input should be a valid string"),
        ({"neuron": "lif"}, "neuron must be dft; got 'lif'"),
        ({"psp_persistence": "1"}, "psp_persistence must be a number; got '1'"),
        ({"encoder": "analog"}, "specification must start with a convolution"),
        ({"max_value": 255.0}, r"max_value must be 1; got 255\.0\."),
        ({"batch_norm": True, "grid": {"time_steps": 4}}, "grid must be None with batch_norm; got 4 time steps"),
        ({"std": [0.5]}, "mean and std must be None for encoder=latency"),
        ({"specification": "12C2", "encoder": "whitened"}, "start with 8 channels for encoder=whitened"),
        ({**ANALOG, "mean": [0.5]}, r"mean must have one entry per channel \(3\); got \(0.5,\)"),
        ({"width": 1e5}, "width must give no layer more than 1048576 neurons or channels"),
    ],
)
def test_fields_that_exclude_each_other_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig.from_dict({"specification": "128"} | values)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("encoder", ("rate", ["latency"])),
        ("readout", ("count",)),
        ("in_channels", (0, 2**12 + 1)),
        ("classes", (10**12, 10.0, True, "10")),
        ("image_size", ([28], [28, "28"], [28, 10**6], [28.0, 28], None)),
        ("width", (0.0, 1e308, 10**400, float("nan"), True)),
        ("initial_gain", (float("inf"), -1)),
        ("dropout", (1.0, -0.1)),
        ("mean", ([0.5, 0.0, 1e300], [0.5, None, 1], 10**400)),
        ("std", ([0.5, 0.0, 1.0],)),
        ("bias", ("no", 1)),
    ],
)
def test_values_of_another_type_or_range_are_refused(field, values):
    """Exactly what JSON gives back: true is no number and 10.0 no count."""
    for value in values:
        with pytest.raises(ValueError, match=rf"for NetworkConfig\n{field}[.\n].*"):
            NetworkConfig.from_dict({**ANALOG, field: value})
