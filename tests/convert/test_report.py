"""Every tensor of the source and every parameter of the network is in the report, once and truly."""

import io
import json

import pytest
from rich.console import Console

from tests.convert import sources
from tests.convert.sources import randomised, weights_of
from tests.model.earlier_ann import EarlierANN
from ttfs_triton.convert import convert
from ttfs_triton.nn import NetworkConfig


@pytest.mark.parametrize(
    "build",
    [sources.torchvision, sources.one_layer_head, sources.timm_pooled, sources.paper],
    ids=lambda build: build.__name__,
)
@pytest.mark.parametrize("replace_head", [False, True])
def test_report_accounts_for_everything(build, replace_head):
    weights = weights_of(randomised(build()))
    converted = convert(weights, replace_head=replace_head, trained_as="ann")
    report, state = converted.report, converted.network.state_dict()
    assert [entry.key for entry in report.sources] == list(weights.tensors)
    assert all(entry.shape == tuple(weights.tensors[entry.key].shape) for entry in report.sources)
    assert {entry.name: entry.shape for entry in report.targets} == {key: tuple(v.shape) for key, v in state.items()}
    for entry in report.sources:
        assert entry.status in ("used", "folded", "replaced", "not needed")
        assert set(entry.target) <= state.keys()
        assert bool(entry.target) == (entry.status in ("used", "folded"))
        assert bool(entry.reason) == (entry.status != "used")
    assert report.head_replaced == replace_head


def own(**options):
    ann = EarlierANN(NetworkConfig("3C3-P2-4", image_size=(6, 6), **options))
    return weights_of(ann.tensors, ann.description())


def origins(report) -> dict[str, str]:
    return {entry.name.removeprefix("features."): entry.origin for entry in report.targets}


def entries(report) -> dict[str, tuple[str, tuple[str, ...], str]]:
    return {entry.key.removeprefix("features."): (entry.status, entry.target, entry.reason) for entry in report.sources}


def test_report_of_kept_standardisation():
    report = convert(own(batch_norm=True)).report
    found = origins(report)
    assert found["conv1.weight"] == "features.conv1.weight"
    assert found["conv1.weight_gain"] == "features.conv1.weight_gain (batch norm folded)"
    assert found["conv1.bias"] == "features.conv1.batch_norm.* (batch norm folded)"
    assert found["readout.bias"] == "readout.bias"
    keys = entries(report)
    gain, bias = "features.conv1.weight_gain", "features.conv1.bias"
    assert keys["conv1.weight"] == ("used", ("features.conv1.weight",), "")
    assert keys["conv1.weight_gain"] == ("folded", (gain,), "batch norm")
    assert keys["conv1.batch_norm.running_var"] == ("folded", (gain, bias), "batch norm")
    assert keys["conv1.batch_norm.running_mean"] == ("folded", (bias,), "batch norm")
    assert keys["conv1.batch_norm.num_batches_tracked"] == ("not needed", (), "counts training batches")


def test_report_of_folded_standardisation():
    report = convert(own(batch_norm=True), keep_standardisation=False).report
    assert origins(report)["conv1.weight"] == "features.conv1.weight (weight standardisation, batch norm folded)"
    keys = entries(report)
    weight = ("features.conv1.weight",)
    assert keys["conv1.weight"] == ("folded", weight, "weight standardisation, batch norm")
    assert keys["conv1.weight_gain"] == ("folded", weight, "weight standardisation, batch norm")
    assert "standardised weights folded into plain ones" in report.notes


def test_missing_biases_are_zeros_and_said():
    report = convert(own(batch_norm=True, bias=False)).report
    assert origins(report)["readout.bias"] == "zero: the source has none"


def test_report_is_json_and_a_table():
    weights = weights_of(randomised(sources.torchvision(side=7)))
    report = convert(weights, image_size=32, classes=3, replace_head=True).report
    values = json.loads(json.dumps(report.to_dict()))
    assert values["layout"] == "torchvision VGG"
    assert len(values["sources"]) == len(weights.tensors)
    assert {"key", "shape", "status", "target", "reason"} == values["sources"][0].keys()
    assert {"name", "shape", "origin"} == values["targets"][0].keys()
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(report.table())
    text = console.export_text()
    for part in (
        "features.conv1.weight",
        "classifier.0.weight (average pool folded)",
        "drawn, seed 0",
        "replaced (a new readout was asked for): classifier.6.weight, classifier.6.bias",
        "not needed (counts training batches): features.1.num_batches_tracked",
        "and 5 more",
        "mean and std of the config.json beside the weights",
        "0" * 64,
    ):
        assert part in text
