"""`bench/kernels.py`: options, layers, checks and times. Tuning and compiling have files of their own."""

import dataclasses
import json
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.bench.modules import record
from ttfs_kernels.triton_backend.problem import PASSES, Problem
from ttfs_triton.nn import DFTConv2d, DFTLinear, models

ROOT = Path(__file__).parents[2]
LAYERS = [
    {"name": "c", "height": 5, "width": 4, "in_channels": 2, "out_channels": 4, "kernel": [3, 3], "padding": [1, 1]},
    {"name": "f", "height": 1, "width": 1, "in_channels": 96, "out_channels": 64},
]
TIMED = ("forward", "grad_x", "grad_w", "grad_b", "forward_backward")
PROVIDERS = ("ours, torch", "composition", "ANN")


@pytest.fixture
def shapes(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(LAYERS), encoding="utf-8")
    return path


@pytest.fixture
def run(kernels, monkeypatch, shapes, tmp_path):
    """Exit status, rows and their circumstances of a run on the CPU."""

    def call(*arguments: str) -> tuple[int, list[dict[str, str]], dict]:
        small = ["--shapes", str(shapes), "--batch-size", "3", "--rounds", "2", "--threads", "1", "--no-compiled"]
        output = tmp_path / "results"
        options = ["--device", "cpu", "--output", str(output), *small, *arguments]
        monkeypatch.setattr(sys, "argv", ["kernels.py", *options])
        with pytest.raises(SystemExit) as exit_:
            kernels.main()
        return exit_.value.code, *record.read(output / "kernels-cpu.csv")

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tune", "--compile-only"], "--tune and --compile-only must not be given together; got both"),
        (["--tune", "--device", "cpu"], "--tune must have a GPU; got --device cpu"),
        (["--targets", "sm_90"], "--targets must come with --compile-only; got it alone"),
        (["--workers", "2"], "--workers must come with --compile-only; got it alone"),
        (["--quick", "--compile-only"], "--quick must come with times or --tune; got another command"),
        (["--compile-only", "--targets"], "--targets must name at least one; got none"),
        (["--dtypes"], "--dtypes must name at least one; got none"),
        (["--sigma"], "--sigma must name at least one; got none"),
        (["--compile-only", "--workers", "0"], "--workers must be at least 1; got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1; got 0"),
        (["--rounds", "-1"], "--rounds must be at least 1; got -1"),
        (["--threads", "0"], "--threads must be at least 1; got 0"),
        (["--sigma", "1", "1.5"], r"--sigma must lie in \[0, 1\]; got 1.5"),
        (["--sigma", "nan"], r"--sigma must lie in \[0, 1\]; got nan"),
        (["--device", "cpu", "--dtypes", "fp16", "fp32"], "--dtypes must be bf16 or fp32 on a CPU; got fp16 fp32"),
    ],
)
def test_refuses_nonsense(kernels, monkeypatch, arguments, message):
    device = [] if "--device" in arguments else ["--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["kernels.py", *device, *arguments])
    with pytest.raises(SystemExit, match=f"kernels: {message}"):
        kernels.main()


def test_refuses_a_gpu_that_is_not_there(kernels, monkeypatch):
    monkeypatch.setattr(kernels.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--device", "cuda"])
    with pytest.raises(SystemExit, match="--device cuda must have a GPU that PyTorch can use; found none"):
        kernels.main()


def test_refuses_to_start_without_triton(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None if name == "triton" else name)
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--device", "cpu"])
    with pytest.raises(SystemExit, match="kernels: Triton must be installed; found none"):
        kernels.main()


def test_leaves_the_plot_out_without_matplotlib(kernels, monkeypatch, capsys):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None if name == "matplotlib" else name)
    options = kernels.Options(device="cpu")
    kernels.refuse(options)
    assert not options.plot
    assert capsys.readouterr().err == "no plot: matplotlib is not installed. For one, pip install -e '.[plot]'.\n"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "No such file"),
        ("not JSON", "JSONDecodeError"),
        ("{}", "at least one layer"),
        ("[]", "at least one layer"),
        ("[3]", "AttributeError"),
        ('[{"height": 3}]', "KeyError: 'name'"),
        ('[{"name": "x", "height": 3}]', "TypeError"),
        (json.dumps([LAYERS[0] | {"filters": 3}]), "filters"),
        (json.dumps([LAYERS[0] | {"batch": 3, "dtype": "float16"}]), "batch, dtype of c belong on the command line"),
        (json.dumps([LAYERS[0] | {"kernel": [7, 7]}]), "the kernel of c is larger than its maps"),
    ],
)
def test_unreadable_shapes_are_named(kernels, monkeypatch, tmp_path, content, what):
    path = tmp_path / "layers.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--device", "cpu", "--shapes", str(path)])
    with pytest.raises(SystemExit, match=r"kernels: .*layers\.json") as exit_:
        kernels.main()
    assert what in str(exit_.value)


def test_shapes_are_those_of_the_networks(kernels):
    """Every spiking layer of CNN1, VGG11 and VGG16 by its name, and no other; "latency" where it takes that encoder."""
    expected: dict[str, Problem] = {}
    for model in ("cnn1", "vgg11", "vgg16"):
        usual = spiking_layers(model)
        latency = {f"{name} latency": layer for name, layer in spiking_layers(model, encoder="latency").items()}
        expected |= usual | {name: x for name, x in latency.items() if name.removesuffix(" latency") not in usual}
    layers = kernels.load(ROOT / "bench" / "shapes.json")
    found = {name: layer.problem(1, "fp32", 1.0) for layer in layers for name in layer.networks}
    assert found == expected
    assert len(found) == sum(len(layer.networks) for layer in layers)
    assert len({layer.name for layer in layers}) == len(layers) == len(set(found.values()))


def spiking_layers(model: str, **options) -> dict[str, Problem]:
    with torch.device("meta"):
        network = getattr(models, model)(**options)
    found = {}

    def note(name, layer, arguments):
        (x,) = arguments
        if isinstance(layer, DFTLinear):
            found[name] = Problem(1, 1, 1, layer.in_features, layer.out_features)
        else:
            geometry = (layer.stride, layer.padding, layer.dilation)
            sizes = (*x.shape[2:], layer.in_channels, layer.out_channels)
            found[name] = Problem(1, *sizes, layer.kernel_size, *geometry, layer.groups)

    for name, layer in network.features.named_children():
        if isinstance(layer, DFTConv2d | DFTLinear):
            layer.register_forward_pre_hook(partial(note, f"{model}.{name}"))
    config = network.config
    network.hidden(torch.empty(1, config.in_channels, *config.image_size, device="meta"))
    return found


def test_writes_rows_with_the_documented_columns(kernels, run, capsys):
    status, rows, about = run("--dtypes", "fp32", "bf16", "--sigma", "1", "0")
    assert status == 0
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    documented = re.search(r"Columns of kernel rows:\n`([a-z0-9_,]+)`", guide)
    assert documented is not None
    assert tuple(rows[0])[: documented[1].count(",") + 1] == tuple(documented[1].split(","))
    assert tuple(rows[0]) == kernels.COLUMNS
    assert [(row["dtype"], row["sigma"], row["case"], row["provider"], row["pass"]) for row in rows] == [
        (dtype, sigma, case, provider, name)
        for dtype in ("float32", "bfloat16")
        for sigma in ("1.0", "0.0")
        for case in ("c-b3", "f-b3")
        for provider in PROVIDERS
        if sigma == "1.0" or provider != "composition"
        for name in TIMED
    ]
    for row in rows:
        assert row["op"] == {"c-b3": "dft_conv2d", "f-b3": "dft_linear"}[row["case"]]
        assert row["layout"] == {"c-b3": "channels_last", "f-b3": "rows"}[row["case"]]
        assert 0 < float(row["ms_p20"]) <= float(row["ms_p50"]) <= float(row["ms_p80"])
        assert float(row["floor_ms"]) > 0
        assert float(row["peak_mib"]) > 0
        assert 0 <= float(row["max_err"]) < 0.1
        assert row["check"] == "passed"
        assert row["power_w"] == row["choice"] == row["cudnn"] == ""
        assert row["torch"] == torch.__version__
    assert json.loads(about["options"])["sigma"] == [1, 0]
    assert set(json.loads(about["ceilings"])) == {"fp32", "bf16"}
    assert not {"output", "shapes"} & set(json.loads(about["options"]))
    said = capsys.readouterr().out
    assert "Triton rows need a GPU and are left out" in said
    assert "Milliseconds, bfloat16, σ = 0" in said


@pytest.mark.parametrize("plot", [True, False])
def test_draws_the_ratios(run, tmp_path, plot):
    run("--dtypes", "fp32", "--plot" if plot else "--no-plot")
    picture = tmp_path / "results" / "kernels-cpu.svg"
    assert picture.exists() == plot
    if plot:
        assert "<!-- composition / ours, torch -->" in picture.read_text(encoding="utf-8")


@pytest.mark.gpu
def test_times_our_kernels_on_a_gpu(kernels, shapes, tmp_path):
    options = kernels.Options(device="cuda", dtypes=("bf16", "tf32"), batch_size=16, rounds=1, compiled=False)
    options.output = tmp_path
    assert kernels.time(options, kernels.load(shapes)) == 0
    rows, _ = record.read(tmp_path / f"kernels-{kernels.table_name(torch.device('cuda'))}.csv")
    assert {row["provider"] for row in rows} == {"ours, triton", "ours, auto", "composition", "stacked", "ANN"}
    assert all(row["check"] == "passed" and float(row["ms_p50"]) > 0 for row in rows)
    choices = {row["provider"]: row["choice"] for row in rows if row["pass"] == "grad_w"}
    assert choices["ours, triton"].endswith("(default)")
    assert choices["ours, auto"] == "library (unmeasured)"


def test_times_nothing_that_is_wrong(kernels, run, monkeypatch, capsys):
    """Ours is a tenth off in fully connected layers: those passes stay without times, and the exit status says so."""
    import _kernels_contenders
    import _kernels_time

    def wrong(*arguments, **options):
        return 1.1 * dft_linear(*arguments, **options)

    dft_linear, time = _kernels_contenders.dft_linear, _kernels_time.Pass.time
    monkeypatch.setattr(_kernels_contenders, "dft_linear", wrong)

    def watched(one, calls):
        assert (one.contender.name, one.batch.x.dim()) != ("ours, torch", 2)
        time(one, calls)

    monkeypatch.setattr(_kernels_time.Pass, "time", watched)
    status, rows, about = run("--dtypes", "fp32")
    assert status == 1
    for row in rows:
        failed = row["provider"] == "ours, torch" and row["case"] == "f-b3"
        assert row["check"] == ("failed" if failed else "passed")
        assert (float(row["max_err"]) > 0.05) == failed
        for column in ("ms_p50", "ms_p20", "ms_p80", "peak_mib", "floor_ms", "tflops", "percent_of_ceiling"):
            assert (row[column] == "") == failed
    assert {mean["layers"] for mean in json.loads(about["geometric_means"])} == {1}
    assert "f-b3 float32 grad_w, ours, torch: check failed" in capsys.readouterr().out


def test_contender_that_does_not_run_fails_alone(run, monkeypatch):
    import _kernels_contenders

    def broken(*arguments, **options):
        raise OSError("no compiler\nfound here")

    monkeypatch.setattr(_kernels_contenders, "dft_conv2d", broken)
    status, rows, _ = run("--dtypes", "fp32")
    assert status == 1
    for row in rows:
        failed = row["provider"] == "ours, torch" and row["case"] == "c-b3"
        assert row["check"] == ("failed: OSError: no compiler" if failed else "passed")
        assert (row["max_err"] == row["ms_p50"] == "") == failed


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's own, while it traces
@pytest.mark.parametrize("sigma", [pytest.param(1.0, marks=pytest.mark.slow), 0.3, 0.0])
@pytest.mark.parametrize("fields", LAYERS, ids=["conv2d", "linear"])
def test_contenders_compute_the_same(kernels, device, monkeypatch, sigma, fields):
    """All that a GPU gets, on whatever runs Triton here; compiled ones without code generation, which takes minutes."""
    import _kernels_contenders
    import _kernels_time

    captured = partial(torch.compile, backend="aot_eager", dynamic=False, fullgraph=True)
    monkeypatch.setattr(_kernels_contenders.torch, "compile", lambda forward, **options: captured(forward))
    torch.compiler.reset()
    sizes = {key: value for key, value in fields.items() if key != "name"}
    problem = kernels.Layer(fields["name"], (), sizes).problem(3, "fp32", sigma)
    batch = _kernels_time.random_batch(problem, device)
    contenders = _kernels_contenders.contenders(problem, torch.device("cuda"), sigma, compiled=True)
    names = [contender.name for contender in contenders]
    if sigma > 0:
        baselines = ["composition", "stacked", "composition, compiled", "stacked, compiled", "ANN"]
    else:
        baselines = ["ANN, compiled", "ANN"]
    assert names == ["ours, triton", "ours, auto", *baselines]
    for contender in contenders:
        expected = _kernels_time.expected(problem, sigma, batch, contender.spiking)
        for name in TIMED:
            error, verdict = _kernels_time.check(_kernels_time.Pass(name, contender, batch), expected, "ieee")
            assert verdict == "passed", f"{contender.name}, {name}: {verdict}, error {error}"


@pytest.mark.parametrize("name", TIMED)
def test_check_finds_every_wrong_result(kernels, name):
    """Activations, and each gradient of its own, a percent off."""
    import _kernels_contenders
    import _kernels_time

    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value, forward, backward):
            ctx.backward_factor = backward
            return value * forward

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.backward_factor, None, None

    problem = Problem(3, 1, 1, 6, 8)
    batch = _kernels_time.random_batch(problem, torch.device("cpu"))
    expected = _kernels_time.expected(problem, 1.0, batch, True)
    right = _kernels_contenders.composed(problem, 1.0)
    verdicts = []
    for wrong in (None, "y", 0, 1, 2):

        def forward(*tensors, wrong=wrong):
            tensors = [Off.apply(tensor, 1.0, 1.01) if i == wrong else tensor for i, tensor in enumerate(tensors)]
            y = right(*tensors)
            return Off.apply(y, 1.01, 1.0) if wrong == "y" else y

        one = _kernels_time.Pass(name, _kernels_contenders.Contender("wrong", forward, masked=False), batch)
        verdicts.append(_kernels_time.check(one, expected, "ieee")[1] == "passed")
    # In order: nothing wrong, the activations, the gradients of x, weight and bias.
    right_verdicts = {
        "forward": [True, False, True, True, True],
        "grad_x": [True, True, False, True, True],
        "grad_w": [True, True, True, False, True],
        "grad_b": [True, True, True, True, False],
        "forward_backward": [True, False, False, False, False],
    }
    assert verdicts == right_verdicts[name]


def test_floors_by_hand(kernels):
    """2 samples, 3 inputs, 5 neurons, float32: forward 2·2·(2·3·5) operations, and 6 + 15 + 2·10 numbers."""
    from _kernels_time import Ceilings, floor_ms

    problem = Problem(2, 1, 1, 3, 5)
    by_operations, by_bytes = Ceilings(1e-6, 1e3), Ceilings(1e3, 1e-3)
    assert [floor_ms(problem, name, by_operations) for name in PASSES] == pytest.approx([0.12, 0.06, 0.12])
    assert [floor_ms(problem, name, by_bytes) for name in PASSES] == pytest.approx([0.164, 0.148, 0.164])
    two_phase = dataclasses.replace(problem, with_slope=False)
    assert [floor_ms(two_phase, name, by_operations) for name in PASSES] == pytest.approx([0.06] * 3)
    assert [floor_ms(two_phase, name, by_bytes) for name in PASSES] == pytest.approx([0.124] * 3)


def test_times_and_shares_of_ceilings_by_hand(kernels):
    from _kernels_time import Ceilings, timing

    problem = Problem(1000, 1, 1, 1000, 500)  # 10⁹ operations a contraction
    ceilings = Ceilings(4.0, 10.0)

    def columns(name: str, spiking: bool) -> dict:
        contender = SimpleNamespace(spiking=spiking)
        one = SimpleNamespace(ms=[3.0, 1.0, 2.0, 1.5, 2.5], name=name, contender=contender, power_w=301.4)
        return timing(one, 12.3456, problem, ceilings)

    forward = columns("forward", True)
    assert [forward[key] for key in ("ms_p50", "ms_p20", "ms_p80")] == pytest.approx([2.0, 1.4, 2.6])
    assert (forward["tflops"], forward["percent_of_ceiling"], forward["floor_ms"]) == (1.0, 25.0, 1.0)
    assert (forward["peak_mib"], forward["power_w"]) == (12.346, 301)
    ann = columns("forward", False)
    assert (ann["tflops"], ann["percent_of_ceiling"], ann["floor_ms"]) == (0.5, 12.5, 0.8)
    both = columns("forward_backward", True)
    assert (both["tflops"], both["percent_of_ceiling"], both["floor_ms"]) == (2.5, 62.5, 3.2)
    assert set(timing(None, None, problem, ceilings).values()) == {""}


def test_ratios_are_geometric_means_by_hand(kernels):
    """Over the layers on which both were timed."""
    from _kernels_table import geometric_means

    times = {"a": (1.0, 2.0, 0.5), "b": (4.0, 32.0, 1.0), "c": ("", 5.0, 5.0), "d": (3.0, "", 27.0)}
    rows = [
        {"dtype": "float32", "sigma": 1.0, "case": case, "pass": "grad_x", "provider": provider, "ms_p50": ms}
        for case, three in times.items()
        for provider, ms in zip(PROVIDERS, three, strict=True)
    ]
    means = {(mean["pass"], mean["provider"], mean["against"]): mean for mean in geometric_means(rows)}
    found = {key: (mean["ratio"], mean["layers"]) for key, mean in means.items() if mean["layers"]}
    # √(2·8), and ∛(0.5·0.25·9)
    assert found == {
        ("grad_x", PROVIDERS[0], "composition"): (4.0, 2),
        ("grad_x", PROVIDERS[0], "ANN"): (1.04, 3),
    }
    assert {mean["ratio"] for key, mean in means.items() if key not in found} == {""}


@pytest.mark.parametrize(("value", "text"), [(123.4, "123"), (12.34, "12.3"), (0.01234, "0.0123"), (0.0, "0")])
def test_times_have_three_digits(kernels, value, text):
    from _kernels_table import digits

    assert digits(value) == text
