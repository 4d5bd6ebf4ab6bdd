"""Tuning, with made-up times: only what agrees with float64 is timed, and no measurement is lost."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.bench.modules import modules
from ttfs_kernels.triton_backend import choice, library, passes
from ttfs_kernels.triton_backend.choice import Choice, choose, read_table
from ttfs_kernels.triton_backend.configs import Config
from ttfs_kernels.triton_backend.formulation import Form
from ttfs_kernels.triton_backend.launch import device_of
from ttfs_kernels.triton_backend.passes import Plan
from ttfs_kernels.triton_backend.problem import PASSES, Problem

kernels, measure, trial = modules("kernels", "_kernels_measure", "_kernels_trial")

LINEAR = Problem(5, 1, 1, 17, 7)
CONV2D = Problem(2, 4, 3, 3, 5, (3, 2), (1, 2), (1, 1))
FORM = Form.WEIGHTS_FIRST
FIRST, SECOND, THIRD = (Config(16, 16, 16, 4, stages, FORM) for stages in (1, 2, 3))


@pytest.fixture(autouse=True)
def _three_candidates(monkeypatch):
    monkeypatch.setattr(measure, "candidates", lambda *arguments: [FIRST, SECOND, THIRD])


@pytest.fixture
def device() -> torch.device:
    """Where kernels run: a GPU, or the CPU under Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _no_tables(monkeypatch, tmp_path):
    """Of whoever runs the tests."""
    monkeypatch.setattr(choice, "SHIPPED", tmp_path / "shipped")
    choice.forget()
    yield
    choice.forget()


@pytest.fixture(autouse=True)
def _exact_float32():
    with kernels.products("fp32"):
        yield


class Clock:
    """Made-up times, in turn; keeps what was timed."""

    def __init__(self, *times_ms: float) -> None:
        self.times_ms = list(times_ms)
        self.timed: list[tuple[Tensor, ...]] = []

    def __call__(self, run: Callable[[], object]) -> float:
        self.timed.append(tuple(run()))
        return self.times_ms[(len(self.timed) - 1) % len(self.times_ms)]


def spoil(monkeypatch: pytest.MonkeyPatch, which: str, spoiled: Config, change: Callable[[Tensor], Tensor]) -> None:
    """Change what our kernel returns with some configuration."""
    real = getattr(passes, which)

    class Spoiled(Plan):
        def run(self):
            first, *others = Plan.run(self)
            return change(first), *others

    def planned(*arguments, **options):
        plan = real(*arguments, **options)
        return Spoiled(*plan) if spoiled in arguments else plan

    monkeypatch.setattr(passes, which, planned)


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize(
    "problem",
    [LINEAR, CONV2D, dataclasses.replace(CONV2D, with_slope=False)],
    ids=["linear", "conv2d", "two_phase"],
)
def test_the_fastest_candidate_is_kept(device, which, problem):
    clock = Clock(5.0, 3.0, 2.0, 4.0)
    entry = measure.measure_entry(which, problem, device, "ieee", time_ms=clock)
    assert entry == choice.Entry(which, problem, "ieee", SECOND, 2.0, 5.0)
    # The library first. All compute the same, and what is timed is the whole batch.
    assert len(clock.timed) == 4
    for results in clock.timed[1:]:
        for ours, library_s in zip(results, clock.timed[0], strict=True):
            torch.testing.assert_close(ours, library_s, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize(
    "change",
    [lambda y: 1.001 * y, lambda y: y.index_fill(0, torch.tensor(0, device=y.device), torch.nan), lambda y: y[:, :1]],
    ids=["inexact", "nan", "shape"],
)
def test_what_is_wrong_is_neither_timed_nor_chosen(device, monkeypatch, which, change):
    spoil(monkeypatch, which, SECOND, change)
    clock, said = Clock(5.0, 3.0, 4.0), []
    entry = measure.measure_entry(which, CONV2D, device, "ieee", time_ms=clock, report=said.append)
    assert entry is not None
    assert (entry.config, entry.triton_ms, len(clock.timed)) == (FIRST, 3.0, 3)
    assert len(said) == 1
    assert said[0].startswith(f"{which} 3→5 3×2 on 4×3, batch 2, float32: ours 3.0000 ms (16×16×16, 4 warps, 1 stages)")
    assert said[0].endswith("library 5.0000 ms, 1 wrong")


def too_large(y: Tensor) -> Tensor:
    raise RuntimeError("out of resources")


def test_what_cannot_run_is_left_out(device, monkeypatch):
    spoil(monkeypatch, "forward", SECOND, too_large)
    clock, said = Clock(5.0, 3.0, 4.0), []
    entry = measure.measure_entry("forward", LINEAR, device, "ieee", time_ms=clock, report=said.append)
    assert entry is not None
    assert (entry.config, len(clock.timed)) == (FIRST, 3)
    assert said[0].endswith(", 1 cannot run")


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("change", [lambda y: y + 1, too_large], ids=["wrong", "cannot_run"])
def test_the_default_must_be_right(device, monkeypatch, which, change):
    """Programs take it without a table: it ends the measurement, or is reported and the others are measured."""
    spoil(monkeypatch, which, FIRST, change)
    with pytest.raises(
        RuntimeError, match=f"measure_entry: our kernel's {which} of .* must run and agree with float64"
    ):
        measure.measure_entry(which, LINEAR, device, "ieee", time_ms=Clock(5.0, 3.0, 4.0))
    faults = []
    entry = measure.measure_entry(which, LINEAR, device, "ieee", time_ms=Clock(5.0, 3.0, 4.0), fault=faults.append)
    assert entry is not None
    assert (entry.config, entry.triton_ms) == (SECOND, 3.0)
    assert len(faults) == 1
    assert faults[0].startswith(f"measure_entry: our kernel's {which}")


@pytest.mark.parametrize("problem", [LINEAR, CONV2D], ids=["linear", "conv2d"])
def test_the_surrogate_is_measured(device, monkeypatch, problem):
    """With its own products and its own entry in grad_x alone; what is timed has both."""
    with_surrogate = dataclasses.replace(problem, surrogate=True)
    assert measure.measure_entry("forward", with_surrogate, device, "ieee", time_ms=Clock(1.0)) is not None
    clocks = [Clock(5.0, 3.0, 2.0, 4.0) for _ in range(2)]
    entries = [
        measure.measure_entry("grad_x", layer, device, "ieee", time_ms=clock)
        for layer, clock in zip((problem, with_surrogate), clocks, strict=True)
    ]
    assert [entry.problem for entry in entries] == [problem, with_surrogate]
    plain, surrogate = ([results[0] for results in clock.timed] for clock in clocks)
    for ours in surrogate:
        torch.testing.assert_close(ours, surrogate[0], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(ours, plain[0])
    spoil(monkeypatch, "grad_x", FIRST, lambda grad: plain[1])  # as if the surrogate were forgotten
    with pytest.raises(RuntimeError, match=r"our kernel's grad_x of .*'surrogate': True"):
        measure.measure_entry("grad_x", with_surrogate, device, "ieee", time_ms=Clock(1.0))


def test_tuning_measures_both_kinds_of_grad_x(device, tmp_path):
    layers = [LINEAR, dataclasses.replace(LINEAR, surrogate=True)]
    entries = measure.tune_layers(layers, tmp_path / "table.json", device=device, timer=Clock(1.0))
    assert [(entry.which, entry.problem.surrogate) for entry in entries] == [
        ("forward", False),
        ("grad_x", False),
        ("grad_w", False),
        ("grad_x", True),
    ]


def test_without_any_right_candidate_there_is_no_entry(device, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "candidates", lambda *arguments: [FIRST])
    spoil(monkeypatch, "forward", FIRST, lambda y: y + 1)
    said = []
    path = tmp_path / "table.json"
    faults = []
    entries = measure.tune_layers(
        [LINEAR], path, device=device, timer=Clock(1.0), report=said.append, fault=faults.append
    )
    assert [entry.which for entry in entries] == ["grad_x", "grad_w"]
    assert read_table(path) == entries
    assert len(faults) == 1
    assert "ours no kernel, library 1.0000 ms, 1 wrong" in said[0]


@pytest.mark.parametrize("which", PASSES)
def test_a_wrong_library_is_not_chosen(device, monkeypatch, which, tmp_path):
    """It ends the measurement, or is reported; then ours is chosen, whatever its time. The table is strict JSON."""
    real = getattr(library, which)
    monkeypatch.setattr(library, which, lambda *arguments: doubled(real(*arguments)))
    clock = Clock(1.0)
    with pytest.raises(RuntimeError, match=f"the library's {which} of .* must run and agree with float64; it does not"):
        measure.measure_entry(which, LINEAR, device, "ieee", time_ms=clock)
    assert not clock.timed
    path, faults, said = choice.table_path(device_of(device)), [], []
    wanted = [(which, LINEAR, "ieee")]
    (entry,) = measure.complete(path, wanted, device, timer=Clock(9.0), report=said.append, fault=faults.append)
    assert (entry.library_ms, len(faults)) == (float("inf"), 1)
    assert said[0].endswith(", library wrong")
    json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert read_table(path) == [entry]
    assert choose(which, LINEAR, device_of(device), "ieee", "auto") == Choice(FIRST, "measured")


def doubled(result):
    return tuple(2 * tensor for tensor in result) if isinstance(result, tuple) else 2 * result


def test_rounding_is_allowed_and_nothing_else():
    expected = torch.randn(10_000, dtype=torch.float64)
    for dtype, precision in ((torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "ieee")):
        assert trial.compare(expected.to(dtype), expected, precision)[1]
    tf32 = expected.to(torch.float32) * (1 + 2e-3 * torch.randn(10_000))
    assert trial.compare(tf32, expected, "tf32")[1]
    assert not trial.compare(tf32, expected, "ieee")[1]
    one_spike = expected.clone()
    one_spike[17] += 1
    largest, agrees = trial.compare(one_spike.to(torch.bfloat16), expected, "ieee")
    assert not agrees
    assert largest == pytest.approx(1, abs=0.05)
    assert not trial.compare(torch.full_like(expected, torch.nan).float(), expected, "ieee")[1]


def test_gains_are_compared_away_from_the_borders():
    """Where the expected gain is NaN, any may be found; where all are, nothing has been compared."""
    expected = torch.tensor([0.5, torch.nan, 1.0], dtype=torch.float64)
    assert trial.compare(torch.tensor([0.5, 7.0, 1.0]), expected, "ieee") == (0.0, True)
    assert not trial.compare(torch.tensor([0.6, 7.0, 1.0]), expected, "ieee")[1]
    assert not trial.compare(torch.zeros(3), torch.full((3,), torch.nan, dtype=torch.float64), "ieee")[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_few_potentials_are_near_a_border(device, dtype):
    """In the layer with the fewest inputs, rounded potentials find the spikes of exact ones, seed by seed."""
    problem = Problem(8, 32, 32, 3, 64, (3, 3), padding=(1, 1), dtype=dtype)
    for seed in range(3):
        operands = trial.random_operands(problem, device, seed)
        images = trial.checked_images(problem.batch, device)
        y, gain = trial.expected_results("forward", problem, operands, images)
        x, weight = (tensor.float().permute(0, 3, 1, 2) for tensor in (operands.x, operands.weight))
        A, W = (torch.conv2d(z, weight, None, padding=1) for z in (x, (x > 0).float()))
        potentials = A.to(dtype).float() + operands.bias[:, None, None], W.to(dtype).float()
        for found, expected in zip(trial.fire(*potentials), (y, gain), strict=True):
            assert trial.compare(found.permute(0, 2, 3, 1).to(dtype), expected, "ieee")[1]
        assert gain.isnan().double().mean() < 0.02
        assert all(0.05 < (y == value).double().mean() < 0.5 for value in (0, 1))


def test_tuning_goes_on_where_it_was_stopped(device, tmp_path):
    """Stopped in its fifth measurement, the table holds four; the others follow, and none is measured twice."""
    path = tmp_path / "new" / "table.json"

    def stopped(run):
        if len(read_table(path)) == 4:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        measure.tune_layers([LINEAR, CONV2D], path, device=device, timer=stopped)
    kept = read_table(path)
    assert [(entry.problem, entry.which) for entry in kept] == [
        *((LINEAR, which) for which in PASSES),
        (CONV2D, "forward"),
    ]
    said = []
    entries = measure.tune_layers([LINEAR, CONV2D, LINEAR], path, device=device, timer=Clock(2.0), report=said.append)
    assert entries[:4] == kept
    assert [entry.triton_ms for entry in entries] == [1.0] * 4 + [2.0] * 2
    assert [line.split()[0] for line in said] == ["grad_x", "grad_w"]
    assert read_table(path) == entries
    about = json.loads(path.read_text(encoding="utf-8"))
    assert about["device"] == device_of(device).name
    assert about["torch"] == torch.__version__


def test_a_table_that_cannot_be_written_leaves_the_old_one(device, monkeypatch, tmp_path):
    path = tmp_path / "table.json"
    measure.tune_layers([LINEAR], path, device=device, timer=Clock(1.0))
    before = path.read_bytes()

    def full(*arguments, **options):
        raise OSError("No space left on device")

    for function, owner in (("replace", measure.os), ("write_text", Path)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, function, full)
            with pytest.raises(OSError, match="No space left"):
                measure.tune_layers([CONV2D], path, device=device, timer=Clock(1.0))
        assert path.read_bytes() == before
        assert list(tmp_path.glob("table*")) == [path]


def test_float32_is_measured_in_the_precision_that_is_set(device, tmp_path):
    path = tmp_path / "table.json"
    with kernels.products("tf32"):
        measure.tune_layers([LINEAR], path, device=device, timer=Clock(1.0))
    entries = measure.tune_layers([LINEAR], path, device=device, timer=Clock(1.0))
    assert [entry.precision for entry in entries] == ["tf32"] * 3 + ["ieee"] * 3


def test_foreign_files_and_devices_are_refused(monkeypatch, tmp_path):
    path = tmp_path / "notes.json"
    path.write_text("my notes", encoding="utf-8")
    clock = Clock(1.0)
    monkeypatch.setattr(measure, "unavailable", lambda device, dtype: None)
    with pytest.raises(ValueError, match=r"notes\.json must be a tuning table"):
        measure.tune_layers([LINEAR], path, device=torch.device("cpu"), timer=clock)
    monkeypatch.setattr(measure, "unavailable", lambda device, dtype: "it is made of wood")
    with pytest.raises(RuntimeError, match=r"device must be able to run Triton kernels; it is made of wood\. Nothing"):
        measure.tune_layers([LINEAR], path, device=torch.device("cpu"), timer=clock)
    assert path.read_text(encoding="utf-8") == "my notes"
    assert not clock.timed


@pytest.mark.gpu
def test_gpu_times_are_the_gpu_s_own():
    """A large copy takes longer than a small one; what prepares a call runs before each and is not counted."""
    large, small = (torch.zeros(size, device="cuda") for size in (1 << 28, 1 << 10))
    prepared = []
    times = measure.gpu_times_ms(small.clone, lambda: prepared.append(large.clone()), repeats=5)
    assert (len(times), len(prepared)) == (5, 5 + measure.WARM_UP)
    assert 0 < 5 * max(times) < measure.gpu_ms(large.clone)
