"""`bench/kernels.py`: options, layers, and `--tune` with made-up times: only what agrees with float64 is timed."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from tests.bench.modules import modules
from tests.kernels.triton.network_layers import network_layers
from ttfs_kernels.triton_backend import choice
from ttfs_kernels.triton_backend.choice import choose, read_table
from ttfs_kernels.triton_backend.launch import device_of
from ttfs_kernels.triton_backend.planning import Config
from ttfs_kernels.triton_backend.problem import PASSES, Problem

gpu_work, kernels, kernels_layers, tune = modules("_gpu_work", "kernels", "_kernels_layers", "_kernels_tune")

LAYER = {"name": "c", "height": 4, "width": 3, "in_channels": 3, "out_channels": 5, "kernel": [3, 2]}
LINEAR, CONV2D = Problem(5, 1, 1, 17, 7), Problem(2, 4, 3, 3, 5, (3, 2), (1, 2), (1, 1))
FIRST, SECOND, THIRD = (Config(16, 16, 16, 4, stages) for stages in (1, 2, 3))


@pytest.fixture
def device() -> torch.device:
    """Where kernels run: a GPU, or the CPU under Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _no_tables(monkeypatch, tmp_path):
    """Whoever runs the tests."""
    monkeypatch.setattr(choice, "SHIPPED", tmp_path / "shipped")
    choice.forget()
    with kernels_layers.products("fp32"):
        yield
    choice.forget()


@pytest.fixture
def tuner(device, monkeypatch, tmp_path):
    """Measures three candidates; `times` are the library's and theirs, `timed` the results that were timed."""
    monkeypatch.setattr(tune, "candidates", lambda *_: [FIRST, SECOND, THIRD])
    found = tune.Tuner(device, tmp_path / "table.json")
    found.times, found.timed, found.said, found.faults = [5.0, 3.0, 2.0, 4.0], [], [], []
    found.report, found.fault = found.said.append, found.faults.append

    def time_ms(run) -> float:
        found.timed.append(run())
        return found.times[(len(found.timed) - 1) % len(found.times)]

    found.time_ms = time_ms
    return found


def spoil(monkeypatch, name: str, change, config: Config | None = None) -> None:
    """Change what a provider returns, our kernels' with one configuration alone."""
    real = getattr(tune.Operands, name)

    def spoiled(self, which, *given):
        run = real(self, which, *given)
        return (lambda: tuple(map(change, run()))) if next(iter(given), None) == config else run

    monkeypatch.setattr(tune.Operands, name, spoiled)


def too_large(_):
    raise RuntimeError("out of resources")


WRONG = {
    "inexact": lambda y: 1.001 * y,
    "nan": lambda y: y.index_fill(0, torch.tensor(0, device=y.device), torch.nan),
    "shape": lambda y: y[:, :1],
    "cannot run": too_large,
}


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("kind", [LINEAR, CONV2D, "two-phase", "surrogate"], ids=["linear", "conv2d", "σ=0", "δ"])
def test_the_fastest_candidate_is_kept(tuner, which, kind):
    problem = {"two-phase": replace(CONV2D, with_slope=False), "surrogate": replace(CONV2D, surrogate=True)}.get(
        kind, kind
    )
    entry = tuner.measure(which, problem, "ieee")
    assert entry == choice.Entry(which, problem, "ieee", SECOND, 2.0, 5.0)
    # The library first. All compute the same, and what is timed is the whole batch.
    library, *ours = tuner.timed
    for results in ours:
        torch.testing.assert_close(results, library, rtol=1e-4, atol=1e-4)
    assert (len(ours), tuner.faults) == (3, [])


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize(("wrong", "right"), [(FIRST, SECOND), (SECOND, FIRST)], ids=["default", "other"])
def test_what_is_wrong_is_neither_timed_nor_chosen(tuner, monkeypatch, which, kind, wrong, right):
    """Programs take the default without a table: a wrong one is a fault. Others are measured all the same."""
    spoil(monkeypatch, "by_kernels", WRONG[kind], wrong)
    tuner.times = [5.0, 3.0, 4.0]
    entry = tuner.measure(which, CONV2D, "ieee")
    assert (entry.config, entry.triton_ms, len(tuner.timed)) == (right, 3.0, 3)
    assert [fault.split(" of ")[0] for fault in tuner.faults] == [f"our kernel's {which}"] * (wrong == FIRST)
    line = tuner.said[-1]
    assert line.startswith(f"{which} of batch 2, height 4, width 3, in_channels 3, out_channels 5, kernel (3, 2), ")
    assert "ours 3.0000 ms (block_m 16, " in line
    assert line.endswith(f"library 5.0000 ms, 1 {'cannot run' if kind == 'cannot run' else 'wrong'}")
    monkeypatch.setattr(tune, "candidates", lambda *_: [wrong])
    assert tuner.measure(which, CONV2D, "ieee") is None


@pytest.mark.parametrize("which", PASSES)
def test_a_wrong_library_is_not_chosen(tuner, device, monkeypatch, which):
    """Then ours is chosen, whatever its time. The table is strict JSON."""
    spoil(monkeypatch, "by_library", lambda y: 2 * y)
    tuner.path = choice.table_path(device_of(device))
    (entry,) = [entry for entry in tuner.complete([LINEAR]) if entry.which == which]
    assert (entry.library_ms, len(tuner.faults)) == (float("inf"), 3)
    json.loads(tuner.path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert entry in read_table(tuner.path)
    assert choose(which, LINEAR, device_of(device), "ieee", "auto") == entry.config


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_rounding_is_allowed_and_nothing_else(precision):
    expected = torch.randn(10_000, dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert tune.close(expected.to(dtype), expected, precision)
    tf32 = expected.to(torch.float32) * (1 + 2e-3 * torch.randn(10_000))
    assert tune.close(tf32, expected, precision) == (precision == "tf32")
    one_spike = expected.clone()
    one_spike[17] += 1
    assert not tune.close(one_spike.to(torch.bfloat16), expected, precision)
    assert not tune.close(torch.full_like(expected, torch.nan).float(), expected, precision)
    # Where the expected gain is NaN, any may be found; where all are, nothing has been compared.
    gain = torch.tensor([0.5, torch.nan, 1.0], dtype=torch.float64)
    assert tune.close(torch.tensor([0.5, 7.0, 1.0]), gain, precision)
    assert not tune.close(torch.tensor([0.6, 7.0, 1.0]), gain, precision)
    assert not tune.close(torch.zeros(3), torch.full((3,), torch.nan, dtype=torch.float64), precision)


def test_tuning_goes_on_where_it_was_stopped(tuner):
    """Stopped in its fifth measurement, the table holds four; the others follow, and none is measured twice."""
    tuner.path, time_ms = tuner.path.parent / "new" / "table.json", tuner.time_ms

    def stopped(run):
        if len(read_table(tuner.path)) == 4:
            raise KeyboardInterrupt
        return 1.0

    tuner.time_ms = stopped
    layers = [LINEAR, CONV2D, LINEAR, replace(CONV2D, surrogate=True)]
    with pytest.raises(KeyboardInterrupt):
        tuner.complete(layers)
    kept, tuner.time_ms = read_table(tuner.path), time_ms
    assert [(entry.problem, entry.which) for entry in kept] == [
        *((LINEAR, which) for which in PASSES),
        (CONV2D, "forward"),
    ]
    entries = tuner.complete(layers)
    assert entries[:4] == kept
    others = [(entry.which, entry.problem.surrogate) for entry in entries[4:]]  # which grad_x alone knows
    assert others == [("grad_x", False), ("grad_w", False), ("grad_x", True)]
    assert (read_table(tuner.path), tuner.faults) == (entries, [])
    about = json.loads(tuner.path.read_text(encoding="utf-8"))
    assert (about["device"], about["torch"]) == (device_of(tuner.device).name, torch.__version__)
    with kernels_layers.products("tf32"):
        assert [entry.precision for entry in tuner.complete([LINEAR])[-3:]] == ["tf32"] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--tune or --compile-only must be given"),
        (["--tune"], "--device cuda must have a GPU that PyTorch can use; found none"),
        (["--tune", "--device", "cpu"], "--device must be able to run Triton kernels; Triton's interpreter multiplies"),
    ],
)
def test_refuses_nonsense(monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["kernels.py", *arguments])
    with pytest.raises(SystemExit, match=f"kernels: {message}"):
        kernels.main()


def test_shapes_are_those_of_the_networks():
    """Every layer of CNN1, VGG11 and VGG16 by its name, and no other; "latency" where it takes that encoder."""
    expected = {}
    for model in ("cnn1", "vgg11", "vgg16"):
        spiking, analog = network_layers(model, 1, torch.float32)
        expected |= {f"{model}.{name}": problem.unpooled for name, problem in spiking}
        expected |= {f"{model}.{name} latency": replace(problem, with_slope=True) for name, problem in analog}
    layers = kernels_layers.load(kernels.SHAPES)
    found = {name: layer.problem(1, "fp32", 1.0) for layer in layers for name in layer.networks}
    assert found == expected
    assert len(found) == sum(len(layer.networks) for layer in layers)
    assert len({layer.name for layer in layers}) == len(layers) == len(set(found.values()))


@pytest.mark.parametrize("to_folder", [False, True])
def test_tuned_layers_are_found_again(device, monkeypatch, tmp_path, capsys, to_folder):
    """`--tune` writes into the package's folder, or the one that --output names."""
    monkeypatch.setattr(kernels, "compile_candidates", lambda *given: None)
    shapes, folder = tmp_path / "shapes.json", tmp_path / ("tuning" if to_folder else "shipped")
    monkeypatch.setattr(choice, "SHIPPED", folder)
    shapes.write_text(json.dumps([LAYER]), encoding="utf-8")
    how = {"shapes": shapes, "device": device.type, "batch_size": 2, "dtypes": ("fp32",), "quick": True}
    problem = kernels_layers.load(shapes)[0].problem(2, "fp32", 1.0)
    assert kernels.tune(kernels.Options(**how, output=folder if to_folder else None)) == 0
    (path,) = folder.glob("*.json")
    assert path == choice.table_path(device_of(device))
    entries = read_table(path)
    assert len(entries) == 4  # three passes, and grad_x with the surrogate derivative
    (entry,) = [entry for entry in entries if entry.which == "forward"]
    assert choose("forward", problem, device_of(device), "ieee", "triton") == entry.config
    assert f"{path.name} holds 4 measurements; ours is the faster in " in capsys.readouterr().out


@pytest.mark.gpu
def test_candidates_compile_and_are_timed_on_a_gpu():
    """A large copy takes longer than a small one."""
    assert kernels.compile_pass(("forward", Problem(16, 1, 1, 64, 64, dtype=torch.bfloat16), "bf16")) == 0
    large, small = (torch.zeros(size, device="cuda") for size in (1 << 28, 1 << 10))
    assert 0 < 5 * tune.gpu_ms(lambda: (small.clone(),)) < tune.gpu_ms(lambda: (large.clone(),))
