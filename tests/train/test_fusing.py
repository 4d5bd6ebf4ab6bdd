"""Long runs on a CPU fuse the passes over neurons, where there is a compiler."""

import pytest
import torch
from torch._inductor import cpp_builder, exc

from ttfs_triton.nn.networks import resnet20
from ttfs_triton.nn.trace import network_graph
from ttfs_triton.train import ConfigError, fusing, train
from ttfs_triton.train.fusing import LEAST_NEURONS, choose_fusing

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def graph():
    return network_graph(resnet20(), (3, 32, 32))


def test_auto_fuses_long_runs_and_says_so(graph):
    lines = []
    neurons = 188_426  # 7 layers of 16×32×32, 6 of 32×16×16, 6 of 64×8×8, 10 outputs
    images = LEAST_NEURONS // neurons + 1
    assert choose_fusing("auto", CPU, graph, images, lines.append)
    assert lines == ["passes over neurons are fused: the first steps wait for PyTorch's compiler"]
    assert not choose_fusing("auto", CPU, graph, images - 1, lines.append)
    assert not choose_fusing("off", CPU, graph, images, lines.append)
    assert choose_fusing("on", CPU, graph, 1, lines.append)
    assert len(lines) == 2


def no_compiler(*_):
    raise exc.InvalidCxxCompiler


def test_what_cannot_be_had_is_refused_if_asked_for(graph, monkeypatch):
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", no_compiler)
    for device, reason in [
        (torch.device("meta"), "the device is no CPU"),
        (CPU, r"there is no C\+\+ compiler"),
    ]:
        with pytest.raises(ConfigError, match=f"fuse: on needs .* but {reason}.*; use auto or off"):
            choose_fusing("on", device, graph, 1, print)
        assert not choose_fusing("auto", device, graph, 10**12, print)


def test_a_run_fuses_while_it_trains(config, monkeypatch):
    switched = []
    monkeypatch.setattr(fusing, "fuse_passes", switched.append)
    train(config.model_copy(update={"fuse": "on", "epochs": 1}))
    assert switched == [True, False]
