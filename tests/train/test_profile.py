"""The profile of some steps: where operators are counted, what it writes, and that it changes nothing."""

import json
from types import SimpleNamespace

import pytest
import yaml
from accelerate.state import AcceleratorState
from torch._C._autograd import DeviceType

from tests.train.recorded import RecordedGraphs
from tests.train.runs import SETTINGS, assert_same_run, make_images
from ttfs_triton.train import TrainConfig, loop, train
from ttfs_triton.train.profile import SKIPPED, idle_share, time_by_row


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_parquet):
    return make_images(tmp_path_factory.mktemp("images"), write_parquet, train=400)


@pytest.fixture
def config(data, tmp_path):
    values = yaml.safe_load(SETTINGS) | {"epochs": 1, "statistics_steps": 100, "profile": 2}
    return TrainConfig(**values, data_dir=data, output_dir=tmp_path / "run")


def change(config, **values):
    return TrainConfig(**config.model_dump() | values)


def test_profile_tells_layers_and_passes_apart_and_changes_nothing(config, tmp_path):
    train(change(config, profile=0, output_dir=tmp_path / "plain"))
    AcceleratorState._reset_state(reset_partial_state=True)
    train(config)
    assert_same_run(tmp_path / "plain", config.output_dir)
    table = (config.output_dir / "profile" / "steps.txt").read_text()
    assert table.startswith("2 steps, as they are\n")
    rows = {tuple(line[:34].split()) for line in table.splitlines()[2:]}
    layers = {"conv1", "pool1", "fc1", "readout"}
    assert {(layer, way) for layer in layers for way in ("forward", "backward")} <= rows
    assert {(stage, "—") for stage in ("data", "loss", "clipping", "optimiser", "idle")} <= rows
    trace = json.loads((config.output_dir / "profile" / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("layer conv1") == names.count("data") == 2


def test_profile_of_replayed_steps_is_followed_by_plain_ones(config, tmp_path, monkeypatch):
    graphs = RecordedGraphs()
    monkeypatch.setattr(loop, "choose_graphs", lambda *_: graphs)
    train(change(config, profile=0, output_dir=tmp_path / "plain"))
    AcceleratorState._reset_state(reset_partial_state=True)
    replays, graphs.replays = graphs.replays, 0
    train(config)
    assert_same_run(tmp_path / "plain", config.output_dir)
    assert graphs.replays == replays - 2
    table = (config.output_dir / "profile" / "steps.txt").read_text()
    assert table.startswith("2 steps, replayed from a graph: the device is idle ")
    assert "2 steps, one by one\n" in table
    assert {path.name for path in (config.output_dir / "profile").iterdir()} == {
        "steps.txt",
        "trace.json",
        "trace-one-by-one.json",
    }


def test_profile_ends_with_the_epoch(config):
    train(change(config, profile=100))
    table = (config.output_dir / "profile" / "steps.txt").read_text()
    assert table.startswith(f"{20 - SKIPPED} steps, as they are\n")


def event(name, *, parent=None, sequence=-1, cpu=0.0, gpu=0.0, span=(0, 0), device=DeviceType.CPU):
    return SimpleNamespace(
        name=name,
        cpu_parent=parent,
        sequence_nr=sequence,
        self_cpu_time_total=cpu,
        self_device_time_total=gpu,
        device_type=device,
        time_range=SimpleNamespace(start=span[0], end=span[1]),
    )


def events(gpu):
    layer = event("layer conv1")
    backward = event("autograd::engine::evaluate_function: ConvolutionBackward0", sequence=7)
    shared = event("autograd::engine::evaluate_function: StandardiseBackward", sequence=3)
    return [
        layer,
        event("aten::conv2d", parent=layer, sequence=7, cpu=2.0, gpu=20.0 * gpu),
        backward,
        event("aten::convolution_backward", parent=backward, cpu=4.0, gpu=40.0 * gpu),
        shared,
        event("aten::sum", parent=shared, cpu=1.0, gpu=10.0 * gpu),
        event("aten::add", parent=event("optimiser"), cpu=0.5, gpu=5.0 * gpu),
        event("aten::zero_", cpu=0.25),
    ]


@pytest.mark.parametrize("gpu", [False, True])
def test_time_by_row_follows_the_forward_operator(gpu):
    scale = 10 if gpu else 1
    assert time_by_row(events(gpu)) == {
        ("conv1", "forward"): 2 * scale,
        ("conv1", "backward"): 4 * scale,
        ("all layers, and loss", "backward"): 1 * scale,
        ("optimiser", "—"): 0.5 * scale,
        ("other", "—"): 0.0 if gpu else 0.25,
    }


def test_idle_share_is_the_time_without_an_event():
    kernels = [event("k", span=span, device=DeviceType.CUDA) for span in ((10, 20), (15, 18), (30, 35), (34, 50))]
    assert idle_share(kernels) == pytest.approx(10 / 40)
    assert idle_share([event("host", span=(0, 100)), *kernels]) == pytest.approx(10 / 40)
    assert idle_share([event("host", span=(0, 4)), event("host", span=(6, 8))]) == pytest.approx(2 / 8)
    assert idle_share([]) == 0.0
