"""Steps that are captured and replayed give the weights of plain ones, bit for bit."""

import weakref
from contextlib import nullcontext
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import _disable_current_modes

from tests.train.recorded import RecordedGraphs
from tests.train.runs import TARGET, assert_same_run, best, change
from ttfs_kernels.triton import common
from ttfs_triton.nn import Grid, coding
from ttfs_triton.train import ConfigError, TrainConfig, learner, train
from ttfs_triton.train.device import WARM_UP, CudaGraphs, GraphError, choose_graphs


@pytest.fixture
def config(config):
    return change(config, epochs=2, evaluation_batch_size=16)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """The encoder checks no batch, as while it trains on a GPU: a captured step may not wait for the device."""
    monkeypatch.setattr(coding, "refuse_unscaled", lambda *_, **__: None)


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that `train` takes for the device's."""
    made = RecordedGraphs()
    monkeypatch.setattr(learner, "choose_graphs", lambda *_: made)
    return made


def train_plainly(config, output):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "choose_graphs", lambda *_: None)
        train(change(config, output_dir=output))
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "values",
    [
        {"mixed_precision": "bf16", "gradient_clip": 1.0, "gradient_accumulation": 2, "optimizer": "adam"},
        {"batch_norm": True, "lookahead": 3, "ema_decay": 0.0, "optimizer": "muon", "surrogate_width": 0.5},
        {"psp_persistence": 0.25, "readout": "first_spike", "schedule": "constant", "optimizer": "sgd"},
        {"batch_norm": True, "psp_persistence_rise": (0.4, 0.7)},
        TARGET,
    ],
    ids=lambda values: "-".join(map(str, values.values())),
)
def test_replayed_steps_give_the_weights_of_plain_ones(config, tmp_path, graphs, values):
    config = change(config, statistics_steps=6, **values)
    train_plainly(config, tmp_path / "plain")
    train(config)
    assert_same_run(tmp_path / "plain", config.output_dir)
    if "psp_persistence_rise" in values:
        assert graphs.captures == 2, "one at σ = 0, and one for all σ above"
        assert graphs.asides == 2 * WARM_UP + 1
    elif "target_sparsity" in values:
        assert graphs.replays > 0, "from the end of the approach, anew"
    else:
        sampled = 3  # steps 0, 6 and 12 of 16
        assert (graphs.asides, graphs.replays) == (WARM_UP + 1, 16 - sampled - WARM_UP)


def test_replayed_kernels_follow_a_rising_persistence_and_were_all_launched_before_a_capture(
    config, tmp_path, graphs, monkeypatch
):
    """A GPU loads no kernel while it captures: all have been launched before, with the same constants."""
    if not common.INTERPRETING:
        pytest.skip("kernels read CPU tensors in Triton's interpreter only")
    config = change(
        config, batch_norm=True, surrogate_width=0.5, backend="triton", psp_persistence_rise=(0.55, 1.0), epochs=1,
        batch_size=2, statistics_steps=100, max_train_samples=25, max_test_samples=2,
    )  # fmt: skip
    train_plainly(config, tmp_path / "plain")
    loaded, launch = set(), common.launch

    def noted(launcher, *values):
        run = partial(launch, launcher, *values)
        loads = (launcher.kernel.fn.__name__, *sorted(launcher.options.items()))
        if graphs.recorder is None:
            loaded.add(loads)
        else:
            assert loads in loaded
            graphs.recorder.note_launch(run)
        with _disable_current_modes():  # the interpreter's own copies are no operators of the step
            run()

    monkeypatch.setattr(common, "launch", noted)
    train(config)
    assert graphs.captures == 2
    assert graphs.replays == 10 - 2 * WARM_UP - 1, "all steps but the first and two warm-ups"
    assert_same_run(tmp_path / "plain", config.output_dir)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache:UserWarning")
def test_compiled_steps_are_captured_and_replayed(config, tmp_path, graphs, monkeypatch):
    """The stand-in sees what `aot_eager` makes of the network; code that runs past PyTorch's dispatcher it cannot."""
    compiled = Mock(side_effect=partial(torch.compile, backend="aot_eager", fullgraph=True))
    monkeypatch.setattr(torch, "compile", compiled)
    config = change(config, **TARGET, epochs=1)
    train_plainly(config, tmp_path / "plain")
    train(change(config, compile=True))
    assert compiled.call_count == 1
    assert graphs.replays > 0
    for name, value in best(tmp_path / "plain").items():
        torch.testing.assert_close(best(config.output_dir)[name], value, atol=1e-5, rtol=0)


def test_run_goes_on_without_a_graph_that_fails_unless_it_is_required(config, tmp_path, monkeypatch, capsys):
    train_plainly(config, tmp_path / "plain")
    monkeypatch.setattr(learner, "choose_graphs", lambda *_: RecordedGraphs("the stream is busy.\nSee the log."))
    train(config)
    assert "no CUDA graph: the stream is busy\n" in capsys.readouterr().out
    assert_same_run(tmp_path / "plain", config.output_dir)
    message = "GraphedStep: a step must be capturable in a CUDA graph; got the stream is busy. Use --cuda-graph off"
    with pytest.raises(GraphError, match=message):
        train(change(config, output_dir=tmp_path / "required", cuda_graph="on"))


def test_cpus_and_grids_whose_weights_the_host_reads_have_no_graph_and_say_so(monkeypatch):
    accelerator, graph, said = Accelerator(cpu=True), Mock(grid=None), []
    assert choose_graphs(TrainConfig(), accelerator, graph, said.append) is None
    assert choose_graphs(TrainConfig(cuda_graph="off"), accelerator, graph, said.append) is None
    assert said == ["no CUDA graph: the device is not a GPU"]
    with pytest.raises(ConfigError, match=r"cuda_graph: on needs .*, but the device is not a GPU"):
        choose_graphs(TrainConfig(cuda_graph="on"), accelerator, graph, said.append)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    accelerator = Mock(device=torch.device("cuda"), num_processes=1)
    for bits, noise, skip in ((None, 0.0, None), (4, 0.1, None), (4, 0.0, "conv1")):
        graph = Mock(grid=Grid(4, bits), stages=[Mock(skip=skip)])
        assert choose_graphs(TrainConfig(weight_noise=noise), accelerator, graph, said.append) is None
    assert choose_graphs(TrainConfig(), accelerator, Mock(grid=None), said.append, graph) is None, "the teacher waits"
    assert [line.endswith("wait for their weights") for line in said] == [False, True, True, True, True]


def test_what_a_graph_reads_lives_as_long_as_the_graph(monkeypatch):
    for name, stand_in in (("CUDAGraph", Mock), ("current_stream", Mock()), ("graph", lambda *_, **__: nullcontext())):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    graphs, kept = object.__new__(CudaGraphs), torch.zeros(1)
    graphs.stream, alive = Mock(), weakref.ref(kept)
    replay = graphs.capture(partial(kept.add_, 1))
    del kept
    assert alive() is not None
    del replay
    assert alive() is None
