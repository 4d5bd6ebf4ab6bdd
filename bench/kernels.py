"""Our kernels layer by layer: timed against four baselines, tuned, or compiled or planned without a GPU.

    python bench/kernels.py                                   # times; without a GPU only what needs none
    python bench/kernels.py --compiled --dtypes bf16          # on a CPU: also the baselines under torch.compile
    python bench/kernels.py --tune --dtypes bf16              # a table for backend="auto" on this GPU
    python bench/kernels.py --compile-only --targets sm_90    # registers, spills, instructions; needs no GPU
    python bench/kernels.py --plan                            # a training step by a model; needs no GPU

Times: all layers of CNN1, VGG11 and VGG16, the passes forward, grad_x, grad_w, grad_b (local gradients and their sum),
and forward with backward. Ours is "triton" (our kernels in every pass) and "auto" (what users get: the faster provider
by the tuned table, the library where there is none). The baselines: the composition that a user would write (two
contractions and `torch.where`); the stacked library call, one contraction over activations and spike mask with fused
element-wise kernels; both under torch.compile; and the same layer of an ANN, with fewer contractions. On a CPU, ours is
the torch backend, which is the stacked call; Triton rows need a GPU and are left out. Every pass is compared with
float64 first; one that fails is not timed, and the exit status is 1. The largest error is in units of the results'
root mean square.
Floors are operations over the speed of a large matrix product, or bytes over that of a large copy, both measured in
the same run; of forward with backward, they do not count the local gradients.

Tuning tries all candidate configurations of our kernels, each compared with float64 first, and goes on where it was
stopped. The table goes into the package, unless --output names another folder.

A default configuration that is wrong or does not run ends it with exit status 1, when all the rest has been measured.

--compile-only refuses kernels whose code must not be built; then the exit status is 1. Without --shapes, it also takes
those of shapes-compile.json. Rows of other Triton versions stay in its table. See `_kernels_compile.py`.

--plan measures nothing: it counts the launches, programs, operations and bytes of a training step of --model, ours, the
stacked library calls and the plain ANN, and says how long a model thinks they take on an H100: products at 450 TFLOP/s
when all 132 processors are busy, libraries in tiles of 128×128, memory at 2.8 TB/s, loops over memory at 200 cycles of
1.65 GHz a step, at least 2 µs a launch. Host time is left out. See `_plan_model.py`; --machine.* changes its numbers.
"""

import dataclasses
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from _kernels_cases import FORMATS, Layer, Number, in_front_of_pools, load, products
from _plan_model import Machine
from _record import ROOT, environment, write
from rich.console import Console
from rich.progress import track

SHAPES = ROOT / "bench" / "shapes.json"
HARD_SHAPES = ROOT / "bench" / "shapes-compile.json"  # channels off the grid, strides, offsets of 64 bits
Target = Literal["sm_80", "sm_90", "sm_100", "gfx942"]
COLUMNS = (
    *("op", "case", "pass", "provider", "dtype", "layout", "ms_p50", "ms_p20", "ms_p80", "peak_mib", "floor_ms"),
    *("max_err", "gpu", "power_w", "torch", "triton", "cudnn", "commit", "utc"),
    *("sigma", "tflops", "percent_of_ceiling", "choice", "check"),
)


@dataclasses.dataclass
class Options:
    """Time, tune, compile or plan our kernels."""

    tune: bool = False
    """Time the candidate configurations and write a table for backend="auto"; needs a GPU."""
    compile_only: bool = False
    """Compile the default configurations for --targets and judge the machine code; needs no GPU."""
    plan: bool = False
    """Count what a training step of --model launches, and model its time; needs no GPU."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    shapes: Path = SHAPES
    """Layers: name, and fields of `ttfs_kernels.triton_backend.problem.Problem` without batch and dtype."""
    batch_size: int | None = None
    """Default: 256, on a CPU 8."""
    dtypes: tuple[Number, ...] | None = None
    """tf32 is float32 with rounded products. Default: bf16 fp16 fp32; on a CPU bf16 fp32; compiled only: all."""
    sigma: tuple[float, ...] | None = None
    """Share of the slope that persists: 1 is the paper's neuron, 0 two-phase. Default: 1; compiled only: 1 0."""
    rounds: int = 5
    """Rounds that count, of 10 calls (on a CPU 1) for each contender and pass."""
    quick: bool = False
    """Try whether everything runs: one call a measurement, tiny ceilings, only default configurations in tuning. The
    figures mean nothing."""
    compiled: bool = torch.cuda.is_available()
    """Also the baselines under torch.compile, some minutes a layer. Default: if there is a GPU."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's choice."""
    model: Literal["vgg16", "vgg11", "cnn1"] = "vgg16"
    """Network to plan."""
    machine: Machine = dataclasses.field(default_factory=Machine)
    """GPU to plan for."""
    surrogate: bool = False
    """Plan neurons that learn just short of a spike, as the recipes train them: grad_x has two contractions."""
    targets: tuple[Target, ...] | None = None
    """Chips to compile for. Default: all."""
    workers: int | None = None
    """Processes that compile. Default: one a core."""
    plot: bool = True
    """Draw the ratios beside the tables, as SVG; left out, with a line, without matplotlib."""
    output: Path | None = None
    """Folder of the results, default bench/results; with --tune of the table, default the package's."""


def main() -> None:
    import tyro  # here: `gpu.py` calls what is below where there is none

    options = tyro.cli(Options, description=__doc__)
    refuse(options)
    try:
        layers = load(options.shapes)
    except (OSError, ValueError) as error:
        sys.exit(f"kernels: {error}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    if options.plan:
        sys.exit(plan(options))
    if options.compile_only:
        sys.exit(compile_only(options, layers))
    sys.exit(tune(options, layers) if options.tune else time(options, layers))


def refuse(options: Options) -> None:
    """Leave with a message if the options contradict each other or cannot be measured here; say what is left out."""
    if find_spec("triton") is None:
        sys.exit("kernels: Triton must be installed; found none. Run: pip install triton (on Linux).")
    chosen = [f"--{name.replace('_', '-')}" for name in ("tune", "compile_only", "plan") if getattr(options, name)]
    if len(chosen) > 1:
        sys.exit(f"kernels: {' and '.join(chosen)} must not be given together; got both. Give one of them.")
    if options.device == "cuda" and not torch.cuda.is_available() and not (options.compile_only or options.plan):
        sys.exit("kernels: --device cuda must have a GPU that PyTorch can use; found none. Use --device cpu.")
    if options.tune and options.device != "cuda":
        sys.exit('kernels: --tune must have a GPU; got --device cpu. Without a table, backend="auto" is our kernels.')
    for name in ("targets", "workers"):
        if getattr(options, name) is not None and not options.compile_only:
            sys.exit(f"kernels: --{name} must come with --compile-only; got it alone. Add --compile-only.")
    if options.quick and (options.compile_only or options.plan):
        sys.exit("kernels: --quick must come with times or --tune; got another command. Leave it out.")
    for name, default in (("model", "vgg16"), ("machine", Machine()), ("surrogate", False)):
        if getattr(options, name) != default and not options.plan:
            sys.exit(f"kernels: --{name} must come with --plan; got it alone. Add --plan.")
    if options.plan and len(options.dtypes or ("bf16",)) + len(options.sigma or (1.0,)) > 2:
        sys.exit("kernels: --plan must have one of --dtypes and one of --sigma; got more. Plan them one by one.")
    if options.plan and {"fp32", "tf32"} & set(options.dtypes or ()):
        sys.exit(
            "kernels: --plan must have 16 bits, which its model is for; got --dtypes "
            f"{' '.join(options.dtypes or ())}. Give bf16 or fp16."
        )
    for name in ("targets", "dtypes", "sigma"):
        if getattr(options, name) == ():
            sys.exit(f"kernels: --{name} must name at least one; got none. Leave it out for the default.")
    for name in ("batch_size", "rounds", "workers", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            sys.exit(f"kernels: --{name.replace('_', '-')} must be at least 1; got {value}.")
    for sigma in options.sigma or ():
        if not 0 <= sigma <= 1:
            sys.exit(f"kernels: --sigma must lie in [0, 1]; got {sigma}. 1 is the paper's neuron, 0 the two-phase one.")
    timing = not chosen
    if timing and options.device == "cpu" and {"fp16", "tf32"} & set(options.dtypes or ()):
        sys.exit(f"kernels: --dtypes must be bf16 or fp32 on a CPU; got {' '.join(options.dtypes or ())}.")
    if timing and options.plot and find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed. For one, pip install -e '.[plot]'.", file=sys.stderr)
        options.plot = False


def time(options: Options, layers: list[Layer]) -> int:
    """Check and time all contenders; 1 if a check failed."""
    from _kernels_table import geometric_means, show
    from _kernels_time import CALLS, measure, measure_ceilings

    device = torch.device(options.device)
    gpu = device.type == "cuda"
    console = wide_console()
    if not gpu:
        console.print("No GPU: ours is the torch backend. Triton rows need a GPU and are left out.")
    numbers = options.dtypes or (("bf16", "fp16", "fp32") if gpu else ("bf16", "fp32"))
    about = versions(device)
    shared = {key: "" if about[key] is None else about[key] for key in ("torch", "triton", "cudnn", "commit", "utc")}
    shared["gpu"] = about["device"]
    rows: list[dict[str, Any]] = []
    about["ceilings"] = {}
    for number in numbers:
        with products(number):
            ceilings = measure_ceilings(device, number, quick=options.quick)
            about["ceilings"][number] = ceilings._asdict()
            speed = f"{ceilings.tflops:.3g} TFLOP/s, {ceilings.gb_per_s:.3g} GB/s"
            for sigma in options.sigma or (1.0,):
                for layer in track(layers, f"{number}, σ = {sigma:g}, ceilings {speed}", console=console):
                    rows += measure(
                        layer,
                        number,
                        sigma,
                        device,
                        batch_size=options.batch_size or (256 if gpu else 8),
                        rounds=options.rounds,
                        calls=1 if options.quick else CALLS[device.type],
                        compiled=options.compiled,
                        ceilings=ceilings,
                    )
    rows = [{key: (row | shared)[key] for key in COLUMNS} for row in rows]
    means = geometric_means(rows)
    note = f"{about['device']}, PyTorch {about['torch']}, Triton {about['triton']}, {about['utc']} UTC"
    console.print(note, soft_wrap=True)
    show(console, rows, means)
    about |= {"options": plain(options), "geometric_means": means}
    folder = options.output or ROOT / "bench" / "results"
    name = f"kernels-{table_name(device) if gpu else 'cpu'}"
    paths = write(folder, name, rows, about)
    if options.plot:
        from _kernels_plot import draw

        paths.append(draw(folder / f"{name}.svg", rows, note))
    for path in paths:
        print(f"written: {path}")
    return int(any(row["check"] != "passed" for row in rows))


def tune(options: Options, layers: list[Layer]) -> int:
    """Complete the table of this GPU; 1 if a result was wrong that must be right."""
    from _kernels_measure import gpu_ms, gpu_times_ms, tune_layers

    from ttfs_kernels.triton_backend.choice import SHIPPED, Entry

    device = torch.device(options.device)
    path = (options.output or SHIPPED) / f"{table_name(device)}.json"
    console = wide_console()
    say = partial(console.print, soft_wrap=True)
    entries: list[Entry] = []
    faults: list[str] = []
    timer = (lambda run: gpu_times_ms(run, repeats=1)[0]) if options.quick else gpu_ms
    pooled = in_front_of_pools()
    for number in options.dtypes or ("bf16", "fp16", "fp32"):
        cases = product(options.sigma or (1.0,), layers, (False, True))
        batch = options.batch_size or 256
        problems = []
        for sigma, layer, surrogate in cases:
            problems.append(layer.problem(batch, number, sigma, surrogate=surrogate))
            if pooled.intersection(layer.networks):
                problems.append(dataclasses.replace(problems[-1], pool=2))
        with products(number):
            try:
                options_ = {"thorough": not options.quick, "timer": timer, "report": say, "fault": faults.append}
                entries = tune_layers(problems, path, device=device, **options_)
            except (RuntimeError, ValueError) as error:
                sys.exit(f"kernels: {error}")
    faster = sum(entry.triton_ms <= entry.library_ms for entry in entries)
    say(f"{path} holds {len(entries)} measurements; ours is the faster in {faster}")
    for line in faults:
        say(line)
    return int(bool(faults))


def compile_only(options: Options, layers: list[Layer]) -> int:
    """Compile and judge; 1 if something is refused."""
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        # Triton decided when it was imported that kernels are interpreted: start anew.
        environment_ = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        return subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=environment_).returncode
    from _kernels_compile import TARGETS, build_all, default_kernels, others, row, show

    if options.shapes == SHAPES:
        layers = layers + load(HARD_SHAPES)
    targets, numbers = options.targets or tuple(TARGETS), options.dtypes or tuple(FORMATS)
    kernels = default_kernels(layers, targets, numbers, options.sigma or (1.0, 0.0), options.batch_size or 256)
    codes = build_all(kernels, min(options.workers or os.cpu_count() or 1, len(kernels)))
    rows = [row(kernel, code) for kernel, code in zip(kernels, codes, strict=True)]
    console = wide_console()
    show(console, rows)
    about = versions(torch.device("cpu")) | {"options": plain(options)}
    folder, name = options.output or ROOT / "bench" / "results", "kernels-compile-only"
    kept, runs = others(folder / f"{name}.json", str(about["triton"]))
    for path in write(folder, name, kept + rows, {"runs": [*runs, about]}):
        print(f"written: {path}")
    return int(any(row["verdict"] != "ok" for row in rows))


def plan(options: Options) -> int:
    """Write and show the plan of a training step."""
    import _kernels_plan as planned

    (number,), (sigma,) = options.dtypes or ("bf16",), options.sigma or (1.0,)
    batch = options.batch_size or 256
    network = planned.read(options.model, batch, number, sigma, surrogate=options.surrogate)
    parts = planned.plan(network, number, options.machine)
    totals = planned.totals(parts)
    note = f"{options.model}, batch {batch}, {number}, σ = {sigma:g}, {options.machine.name}"
    planned.show(wide_console(), parts, totals, note)
    few = [f"{part.layer} {part.pass_}" for part in planned.few_programs(parts)]
    about = versions(torch.device("cpu")) | {"is": "a model, not a measurement", "options": plain(options)}
    about |= {"totals": totals, "few_programs": few}
    name = f"kernels-plan-{options.machine.name}" + ("" if options.model == "vgg16" else f"-{options.model}")
    for path in write(options.output or ROOT / "bench" / "results", name, [planned.row(p) for p in parts], about):
        print(f"written: {path}")
    return 0


def table_name(device: torch.device) -> str:
    """How the files of a GPU are called."""
    from ttfs_kernels.triton_backend.choice import table_path
    from ttfs_kernels.triton_backend.launch import device_of

    return table_path(device_of(device)).stem


def versions(device: torch.device) -> dict[str, Any]:
    """What `_record.environment` says, and Triton's version."""
    import triton

    return environment(device) | {"triton": triton.__version__}


def plain(options: Options) -> dict[str, Any]:
    """Options for JSON, without folders of this machine."""
    return {key: value for key, value in dataclasses.asdict(options).items() if key not in ("output", "shapes")}


def wide_console() -> Console:
    """Tables need a line of this width, also where the output is not a terminal."""
    console = Console()
    return console if console.width >= 140 else Console(width=140)


if __name__ == "__main__":
    main()
