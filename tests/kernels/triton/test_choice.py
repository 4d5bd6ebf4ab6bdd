"""Which provider and blocks a pass gets: from tuned tables, from those of near shapes, or by default."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ttfs_kernels import Neuron, dft_linear, ops
from ttfs_kernels.triton_backend import choice
from ttfs_kernels.triton_backend.choice import FORMAT_VERSION, Choice, Entry, choose, distance, read_table
from ttfs_kernels.triton_backend.configs import Config, default_config
from ttfs_kernels.triton_backend.formulation import Chip, Form
from ttfs_kernels.triton_backend.launch import Device
from ttfs_kernels.triton_backend.problem import PASSES, Problem

GPU = Device("NVIDIA H100 80GB HBM3", Chip("cuda", 90), 132)
LAYER = Problem(64, 16, 16, 128, 256, (3, 3), padding=(1, 1), dtype=torch.float16)
TUNED = Config(64, 128, 64, 4, 3, Form.WEIGHTS_FIRST, splits=7)


def entry(triton_ms: float, library_ms: float, **changes) -> Entry:
    config = changes.pop("config", TUNED)
    which, precision = changes.pop("which", "forward"), changes.pop("precision", "ieee")
    return Entry(which, dataclasses.replace(LAYER, **changes), precision, config, triton_ms, library_ms)


def write(path: Path, *entries: Entry) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format_version": FORMAT_VERSION, "entries": [e.to_dict() for e in entries]}
    path.write_text(json.dumps(content), encoding="utf-8")
    choice.forget()
    return path


def own_table() -> Path:
    return choice.table_path(GPU)


def chosen(backend: str, which: str = "forward", precision: str = "ieee", **changes) -> Choice:
    return choose(which, dataclasses.replace(LAYER, **changes), GPU, precision, backend)


def test_tables_are_named_after_the_gpu():
    assert own_table().name == "nvidia-h100-80gb-hbm3.json"


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_what_nobody_measured_is_our_kernel_in_default_blocks(which, backend):
    assert chosen(backend, which) == Choice(default_config(which, LAYER, GPU.chip, "ieee"), "default")


def test_the_faster_provider_is_chosen():
    write(own_table(), entry(1.0, 2.0), entry(2.0, 1.0, which="grad_x"))
    assert chosen("auto") == Choice(TUNED, "measured")
    assert chosen("auto", "grad_x") == Choice(None, "measured")
    assert chosen("triton", "grad_x") == Choice(TUNED, "measured")
    assert chosen("auto", "grad_w").reason == "default"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "measured"),
        ({"batch": 128}, "near"),
        ({"batch": 32}, "near"),
        ({"batch": 129}, "default"),
        ({"in_channels": 200, "out_channels": 512}, "near"),
        ({"in_channels": 300}, "default"),
        ({"out_channels": 127}, "default"),
        ({"height": 32}, "near"),
        ({"height": 8, "width": 8}, "default"),
        ({"kernel": (3, 1)}, "default"),
        ({"stride": (2, 2)}, "default"),
        ({"padding": (0, 0)}, "default"),
        ({"dilation": (2, 2)}, "default"),
        ({"groups": 2}, "default"),
        ({"dtype": torch.bfloat16}, "default"),
        ({"with_slope": False}, "default"),
        ({"precision": "tf32"}, "default"),
        ({"which": "grad_w"}, "default"),
    ],
    ids=str,
)
def test_near_shapes_share_a_measurement(changes, reason):
    """Sizes within a factor of 2; what kind of layer it is must agree."""
    write(own_table(), entry(1.0, 2.0))
    found = chosen("auto", **changes)
    assert (found.config == TUNED, found.reason) == (reason != "default", reason)


def test_the_nearest_measurement_counts():
    other = dataclasses.replace(TUNED, num_stages=4)
    write(own_table(), entry(1.0, 2.0, batch=32), entry(1.0, 2.0, batch=96, config=other))
    assert chosen("auto") == Choice(other, "near")
    assert chosen("auto", batch=40) == Choice(TUNED, "near")
    assert chosen("auto", batch=32) == Choice(TUNED, "measured")


def test_distance_counts_doublings():
    assert distance(LAYER, LAYER) == 0
    assert distance(LAYER, dataclasses.replace(LAYER, batch=128, in_channels=16)) == 3
    one_pixel = Problem(8, 1, 1, 16, 16)
    assert distance(one_pixel, dataclasses.replace(one_pixel, batch=2, height=2, width=2)) == float("inf")


@pytest.mark.parametrize("form", [Form.ACTIVATIONS_FIRST, Form.STACKED])
def test_racing_forms_of_a_table_are_ignored(monkeypatch, form):
    """A table may come from a newer Triton, or from another chip of the same name."""
    write(own_table(), entry(0.1, 2.0, config=dataclasses.replace(TUNED, form=form)), entry(1.0, 2.0, batch=96))
    monkeypatch.setattr(choice, "triton_version", lambda: (3, 8))
    assert chosen("auto") == Choice(TUNED, "near")
    monkeypatch.setattr(choice, "triton_version", lambda: (3, 9))
    choice.forget()
    expected = (
        Choice(TUNED, "near")
        if form == Form.ACTIVATIONS_FIRST
        else Choice(dataclasses.replace(TUNED, form=form), "measured")
    )
    assert chosen("auto") == expected


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("not JSON", "Expecting value"),
        ("[]", ""),
        ("{}", "format_version"),
        ('{"format_version": 99, "entries": []}', "format_version is 99"),
        (f'{{"format_version": {FORMAT_VERSION}}}', "entries"),
        (f'{{"format_version": {FORMAT_VERSION}, "entries": [{{"pass": "forward"}}]}}', "problem"),
        (f'{{"format_version": {FORMAT_VERSION}, "entries": [3]}}', ""),
    ],
)
def test_malformed_tables_are_named(content, what):
    path = own_table()
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    message = f"{path} must be a tuning table of format version {FORMAT_VERSION}; .*{what}.*bench/kernels.py --tune"
    with pytest.raises(ValueError, match=message):
        chosen("auto")


def test_entries_with_unknown_values_are_malformed():
    for wrong in ({"config": {"form": "sideways"}}, {"problem": {"dtype": "float17"}}, {"triton_ms": "fast"}):
        values = entry(1.0, 2.0).to_dict()
        for key, value in wrong.items():
            values[key] = values[key] | value if isinstance(value, dict) else value
        own_table().parent.mkdir(parents=True, exist_ok=True)
        own_table().write_text(json.dumps({"format_version": FORMAT_VERSION, "entries": [values]}), encoding="utf-8")
        with pytest.raises(ValueError, match="must be a tuning table"):
            read_table(own_table())


def test_entries_survive_json():
    entries = [entry(1.0, 2.0), entry(0.5, 0.25, which="grad_w", precision="tf32", dtype=torch.float32)]
    assert read_table(write(own_table(), *entries)) == entries
    assert read_table(own_table().with_name("none.json")) == []


def test_choices_are_kept_until_forgotten():
    default = chosen("auto")
    path = own_table()
    path.parent.mkdir(parents=True)
    content = {"format_version": FORMAT_VERSION, "entries": [entry(1.0, 2.0).to_dict()]}
    path.write_text(json.dumps(content), encoding="utf-8")
    assert chosen("auto") == default
    assert choice.choices() == {("forward", LAYER, GPU, "ieee", "auto"): default}
    choice.forget()
    assert chosen("auto") == Choice(TUNED, "measured")


def test_layers_run_with_what_was_chosen(device, monkeypatch):
    """A small block of the table of this very device, found by the public function, forward and backward."""
    from ttfs_kernels.triton_backend.launch import device_of

    x = torch.rand(5, 7, device=device, requires_grad=True)
    weight = torch.randn(6, 7, device=device, requires_grad=True)
    expected = dft_linear(x, weight, backend="torch")
    this = device_of(device)
    small = Config(16, 16, 16, 4, 1, Form.WEIGHTS_FIRST)
    problem = Problem.of(x, weight, None, Neuron())
    write(choice.table_path(this), *(Entry(which, problem, "ieee", small, 1.0, 2.0) for which in PASSES))
    monkeypatch.setattr(ops, "backend_for", lambda *_: "auto")
    y = dft_linear(x, weight)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    y.sum().backward()
    assert {key[0]: made for key, made in choice.choices().items()} == dict.fromkeys(PASSES, Choice(small, "measured"))
