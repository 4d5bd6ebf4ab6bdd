"""What the stages of `gpu.py` run, each in a process of its own; needs no tyro, no pydantic, no data set.

python bench/_gpu_work.py NAME [ARGUMENT...]
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _record import ROOT, environment, read
from torch import Tensor, nn

TABLES = ROOT / "kernels" / "ttfs_kernels" / "triton_backend" / "tuning"
BATCH = 256
IMAGES = 50_000
PROCESSES = min(16, os.cpu_count() or 1)


def versions(output: str) -> int:
    """Software and device; 1 if Triton kernels cannot run."""
    from ttfs_kernels.backends import why_no_triton

    found = {"cuda": torch.version.cuda, "hip": torch.version.hip, "available": torch.cuda.is_available()}
    for package in ("triton", "numpy", "xdist", "tyro", "pydantic", "datasets"):
        there = find_spec(package) is not None
        found[package] = getattr(__import__(package), "__version__", "there") if there else "not there"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"sm": f"{properties.major}{properties.minor}", "processors": properties.multi_processor_count}
        found |= environment(torch.device("cuda"))
    else:
        found |= environment(torch.device("cpu"))
    reason = why_no_triton(torch.device("cuda"), torch.bfloat16) if torch.cuda.is_available() else "no GPU"
    (Path(output) / "versions.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    print(json.dumps(found, indent=2))
    device, torch_, triton = (found.get(key) for key in ("device", "torch", "triton"))
    print(f"{device}, PyTorch {torch_}, Triton {triton}" if reason is None else reason)
    return int(reason is not None)


def pytest(*arguments: str) -> int:
    """Tests, in as many processes as compile kernels at once."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *arguments]
    if find_spec("xdist") is not None:
        words += ["-n", str(PROCESSES)]
    os.execv(sys.executable, words)


def step() -> int:
    """A training step with each backend, twice: the second must not wait for the device."""
    for backend in ("triton", "auto", "torch"):
        network, optimizer, images, labels = training(backend)
        train(network, optimizer, images, labels)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        loss = train(network, optimizer, images, labels)
        torch.cuda.set_sync_debug_mode("default")
        if not torch.isfinite(loss):
            print(f"{backend}: the loss is {loss.item()}")
            return 1
        print(f"{backend}: loss {loss.item():.4f} after two steps, no synchronisation")
    return 0


def training(backend: str, **options) -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    """VGG16 as its recipe trains it, an optimiser, and a batch of noise with labels."""
    from ttfs_triton.nn import Neuron, models

    torch.manual_seed(0)
    settings = {"backend": backend, "neuron": Neuron(surrogate_width=0.5), "readout": "potential_end"} | options
    network = models.vgg16(**settings).cuda().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    images = torch.rand(BATCH, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    return network, optimizer, images, torch.randint(10, (BATCH,), device="cuda")


def train(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Tensor:
    """One step; the loss stays on the device."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16):
        logits = network(images)
    loss = F.cross_entropy(logits.float(), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def compile() -> int:
    """All candidates of `tune bf16` into Triton's cache, so that tuning only loads them."""
    jobs = [(layer, which, index) for layer, which, count in candidates() for index in range(count)]
    failed: list[str] = []
    with get_context("spawn").Pool(PROCESSES) as pool:
        for done, reason in enumerate(pool.imap_unordered(compile_one, jobs, chunksize=4), 1):
            failed += [reason] if reason else []
            if done % 50 == 0:
                print(f"{done} of {len(jobs)} compiled, {len(failed)} failed", flush=True)
    print("\n".join(sorted(set(failed))))
    print(f"{len(jobs)} compiled, {len(failed)} failed")
    return int(len(failed) > len(jobs) // 10)  # some are too large for a chip: tuning leaves them out


def candidates() -> list[tuple[int, str, int]]:
    """(index of a layer, pass, number of candidates) of every measurement of `tune bf16`."""
    return [
        (index, which, len(configs(problem, which)))
        for index, problem in enumerate(problems())
        for which in ("forward", "grad_x", "grad_w")
        if which == "grad_x" or not problem.surrogate
    ]


def problems() -> list:
    from _kernels_cases import load

    layers = load(ROOT / "bench" / "shapes.json")
    return [layer.problem(BATCH, "bf16", 1.0, surrogate=surrogate) for layer in layers for surrogate in (False, True)]


def configs(problem, which: str) -> list:
    from ttfs_kernels.triton_backend.configs import candidates
    from ttfs_kernels.triton_backend.formulation import triton_version
    from ttfs_kernels.triton_backend.launch import device_of

    here = device_of(torch.device("cuda", 0))
    return candidates(which, problem, here.chip, "ieee", triton_version(), here.processors)


def compile_one(job: tuple[int, str, int]) -> str:
    """Compile without launching, by the path that a launch takes; what went wrong, or nothing."""
    from _planning import plan_pass

    from ttfs_kernels.triton_backend.launch import device_of

    layer, which, index = job
    problem = problems()[layer]
    try:
        config = configs(problem, which)[index]
        for launch in plan_pass(which, problem, config, "ieee", device_of(torch.device("cuda", 0))).launches:
            launch.kernel.warmup(**launch.arguments, **launch.options, grid=launch.grid)
    except Exception as error:
        return f"{which} {type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    return ""


def tune(*numbers: str) -> int:
    """A table in the package, which this checkout's programs find; goes on where it was stopped."""
    kernels: Any = import_module("kernels")  # by name: a folder is called so, too
    options = kernels.Options(tune=True, device="cuda", dtypes=numbers, output=TABLES)
    return kernels.tune(options, kernels.load(options.shapes))


def layers(output: str) -> int:
    """`kernels.py` in bfloat16, without torch.compile, which takes minutes a layer."""
    kernels: Any = import_module("kernels")  # by name: a folder is called so, too
    options = kernels.Options(device="cuda", dtypes=("bf16",), compiled=False, output=Path(output), plot=False)
    torch.backends.cudnn.benchmark = True
    return kernels.time(options, kernels.load(options.shapes))


def train_step(output: str) -> int:
    """`train_step.py` with VGG16 in bfloat16."""
    import train_step

    train_step.run(
        train_step.Options(
            device="cuda", batch_size=BATCH, dtypes=("bfloat16",), optimizer="adamw", output=Path(output)
        )
    )
    return 0


def epoch(output: str) -> int:
    """An epoch of VGG16 on noise by each backend: images a second, a profile; 1 if ours is the slower."""
    speeds: dict[str, float] = {}
    for backend in ("triton", "auto", "torch"):
        network, optimizer, images, labels = training(backend)
        speeds[backend] = images_per_second(partial(train, network, optimizer, images, labels))
        print(f"{backend}: {speeds[backend]:.0f} images/s", flush=True)
        if backend == "triton":
            (Path(output) / "profile.txt").write_text(profile(network, optimizer, images, labels), encoding="utf-8")
        del network, optimizer
    network, optimizer, images, labels = training("torch", analog=True, readout="potential_start")
    speeds["ANN"] = images_per_second(partial(train, network, optimizer, images, labels))
    (Path(output) / "epoch.json").write_text(json.dumps(speeds | environment(torch.device("cuda")), indent=2))
    print("images/s: " + ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items()))
    return int(max(speeds["triton"], speeds["auto"]) < speeds["torch"])


def graph(output: str) -> int:
    """The recipe's loop on the bundled images, by a CUDA graph and without; 1 if losses differ or the device idles."""
    import yaml

    from ttfs_triton.train import TrainConfig, train

    recipe = yaml.safe_load((ROOT / "recipes" / "train_vgg16_cifar10.yaml").read_text(encoding="utf-8"))
    changes = {"dataset": "sample", "data_dir": None, "image_size": 32, "batch_size": 128, "epochs": 6}
    changes |= {"mixed_precision": "bf16", "statistics_steps": 1000, "profile": 5, "overwrite": True}
    losses, idle = [], 0.0
    for mode in ("off", "on"):
        folder = Path(output) / f"graph-{mode}"
        train(TrainConfig(**recipe | changes | {"cuda_graph": mode, "output_dir": folder}))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append(torch.tensor([json.loads(line)["train_loss"] for line in lines]))
        words = (folder / "profile" / "steps.txt").read_text(encoding="utf-8").splitlines()
        idle = float(words[0].rpartition(" ")[2].rstrip("%")) / 100 if mode == "on" else idle
    # Kernels of the library may add in another order from run to run, and a graph reads its rate as float32.
    difference = ((losses[0] - losses[1]).abs() / losses[0]).max().item()
    print(f"losses differ by {difference:.1e}, the device is idle {idle:.1%}")
    return int(difference > 1e-2 or idle > 0.03)


def images_per_second(run: Callable[[], object]) -> float:
    """Of an epoch of 50,000 images, after ten steps that compile and warm up."""
    for _ in range(10):
        run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    steps = IMAGES // BATCH
    for _ in range(steps):
        run()
    torch.cuda.synchronize()
    return steps * BATCH / (time.perf_counter() - start)


def profile(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> str:
    """Kernels of ten steps, by their time on the GPU."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(10):
            train(network, optimizer, images, labels)
        torch.cuda.synchronize()
    return profiled.key_averages().table(sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=80)


def model(output: str) -> int:
    """The plan beside what `layers` measured; 1 if they order layers and passes differently."""
    import _kernels_plan as planned
    from _kernels_cases import load
    from _plan_model import Machine

    paths = sorted(Path(output).glob("kernels-*.csv"))
    if not paths:
        print("layers have not been measured: run the stage layers")
        return 1
    rows = [row for row in read(paths[-1])[0] if row["provider"] == "ours, triton" and row["ms_p50"]]
    measured = {(row["case"].rpartition("-b")[0], row["pass"]): 1e3 * float(row["ms_p50"]) for row in rows}
    pairs = []
    for layer in load(ROOT / "bench" / "shapes.json"):
        costs = dict(planned.ours(layer.problem(BATCH, "bf16", 1.0), "bf16", Machine()))
        local = costs["local_gradient"].us  # a measured backward pass begins with it
        for which in ("forward", "grad_x", "grad_w"):
            if (layer.name, which) in measured:
                expected = costs[which].us + (0 if which == "forward" else local)
                pairs.append((expected, measured[layer.name, which]))
                print(f"{layer.name:<14} {which:<8} model {pairs[-1][0]:8.1f} µs, measured {pairs[-1][1]:8.1f} µs")
    agreement = rank_correlation(torch.tensor(pairs, dtype=torch.float64)) if len(pairs) > 2 else 0.0
    sums = [sum(column) for column in zip(*pairs, strict=True)] or [0, 0]
    print(f"rank correlation {agreement:.2f}, sums {sums[0]:.0f} µs of the model, {sums[1]:.0f} µs measured")
    return int(agreement < 0.8)


def rank_correlation(pairs: Tensor) -> float:
    """Spearman's, of [N, 2] without ties."""
    ranks = pairs.argsort(0).argsort(0).double()
    return torch.corrcoef(ranks.t())[0, 1].item()


WORK = (versions, pytest, step, compile, tune, layers, train_step, epoch, graph, model)


if __name__ == "__main__":
    sys.exit({work.__name__: work for work in WORK}[sys.argv[1]](*sys.argv[2:]))
