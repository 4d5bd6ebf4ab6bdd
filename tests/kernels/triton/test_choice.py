"""Choice of a pass's provider and blocks, from tuning tables or by default."""

import dataclasses
import json

import pytest
import torch

from tests.kernels.common import LINEAR, apply, operands
from ttfs_kernels import Neuron, ops
from ttfs_kernels.triton_backend import choice, launch
from ttfs_kernels.triton_backend.choice import FORMAT_VERSION, Entry, choose, read_table
from ttfs_kernels.triton_backend.formulation import Chip
from ttfs_kernels.triton_backend.launch import Device, device_of, precision_of
from ttfs_kernels.triton_backend.planning import Config, default_config
from ttfs_kernels.triton_backend.problem import PASSES, Problem

GPU = Device("NVIDIA H100 80GB HBM3", Chip("cuda", 90), 132)
LAYER = Problem(64, 16, 16, 128, 256, (3, 3), padding=(1, 1), dtype=torch.float16)
TUNED = Config(64, 128, 64, 4, 3, splits=7)


def entry(triton_ms: float, library_ms: float, **changes) -> Entry:
    config = changes.pop("config", TUNED)
    which, precision = changes.pop("which", "forward"), changes.pop("precision", "ieee")
    return Entry(which, dataclasses.replace(LAYER, **changes), precision, config, triton_ms, library_ms)


def write(content: object, device: Device = GPU) -> None:
    """The table of a device, from entries or from anything else."""
    if isinstance(content, list) and all(isinstance(one, Entry) for one in content):
        content = {"format_version": FORMAT_VERSION, "entries": [one.to_dict() for one in content]}
    path = choice.table_path(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    choice.forget()


def chosen(backend: str = "auto", which: str = "forward", precision: str = "ieee", **changes) -> Config | None:
    return choose(which, dataclasses.replace(LAYER, **changes), GPU, precision, backend)


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_the_faster_provider_is_chosen(backend):
    """Without a measurement, our kernel runs with default blocks."""
    for which in PASSES:
        assert chosen(backend, which) == default_config(which, LAYER, GPU.chip, "ieee", GPU.processors)
    write([entry(1.0, 2.0), entry(2.0, 1.0, which="grad_x")])
    assert chosen(backend) == TUNED
    assert chosen(backend, "grad_x") == (None if backend == "auto" else TUNED)
    assert chosen(backend, "grad_w") == default_config("grad_w", LAYER, GPU.chip, "ieee", GPU.processors)


@pytest.mark.parametrize(
    ("chip", "expected"), [(("cuda", 80), "tf32"), (("hip", "gfx942"), "tf32"), (("hip", "gfx90a"), "ieee")]
)
def test_tf32_is_for_chips_that_have_it(monkeypatch, chip, expected):
    """PyTorch asks for it in convolutions on every GPU; of AMD's chips, Triton compiles it for one only."""
    gpu = torch.device("cuda", 99)
    monkeypatch.setitem(launch._devices, gpu, Device("a GPU", Chip(*chip), 100))
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # until the test ends, see conftest.py
    assert precision_of(dataclasses.replace(LAYER, dtype=torch.float32), gpu) == expected
    assert precision_of(LAYER, gpu) == "ieee"


OTHERS = [
    *({"batch": 63}, {"in_channels": 300}, {"height": 8, "width": 8}, {"kernel": (3, 1)}, {"stride": (2, 2)}),
    *({"padding": (0, 0)}, {"dilation": (2, 2)}, {"groups": 2}, {"dtype": torch.bfloat16}, {"with_slope": False}),
    *({"precision": "tf32"}, {"which": "grad_w"}, {"skip": True}),
]


@pytest.mark.parametrize("changes", OTHERS, ids=str)
def test_a_measurement_counts_for_its_own_shape_alone(changes):
    write([entry(1.0, 2.0)])
    assert chosen(**changes) not in (None, TUNED)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("not JSON", "Expecting value"),
        ([3], ""),
        ({"format_version": 99, "entries": []}, "format_version is 99"),
        ({"format_version": FORMAT_VERSION}, "entries"),
        ({"format_version": FORMAT_VERSION, "entries": [{"pass": "forward"}]}, "problem"),
        *(
            ({"format_version": FORMAT_VERSION, "entries": [entry(1.0, 2.0).to_dict() | change]}, "")
            for change in ({"config": {"form": "weights_first"}}, {"problem": {"dtype": "f17"}}, {"triton_ms": "fast"})
        ),
    ],
)
def test_malformed_tables_are_named(content, what):
    write(content)
    path = choice.table_path(GPU)
    assert path.name == "nvidia-h100-80gb-hbm3.json"
    message = f"{path} must be a tuning table of format version {FORMAT_VERSION}; .*{what}.*bench/kernels.py --tune"
    with pytest.raises(ValueError, match=message):
        chosen()


def test_entries_survive_json_and_choices_are_kept_until_forgotten():
    default = chosen()
    entries = [entry(1.0, float("inf")), entry(0.5, 0.25, which="grad_w", precision="tf32", dtype=torch.float32)]
    entries.append(entry(0.5, 0.25, with_slope=False, skip=True, config=dataclasses.replace(TUNED, by_position=True)))
    write(entries)
    assert read_table(choice.table_path(GPU)) == entries
    assert read_table(choice.table_path(GPU).with_name("none.json")) == []
    assert chosen() == TUNED
    choice.table_path(GPU).unlink()
    assert chosen() == TUNED
    choice.forget()
    assert chosen() == default


def test_layers_run_with_what_was_chosen(device, monkeypatch):
    """A small block of the table of this very device, found by the public function, forward and backward."""
    tensors = operands(LINEAR, device=device)
    expected = apply(LINEAR, tensors, backend="torch")
    small = Config(16, 16, 16, 4, 1)
    problem = Problem.of(tensors["x"], tensors["weight"], None, Neuron())
    write([Entry(which, problem, "ieee", small, 1.0, 2.0) for which in PASSES], device_of(device))
    monkeypatch.setattr(ops, "backend_for", lambda *_: "auto")
    y = apply(LINEAR, tensors)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    y.sum().backward()
    assert {key[0]: made for key, made in choice._choices.items()} == dict.fromkeys(PASSES, small)
