"""Images per second of a network's exported C, beside the simulator that it equals and ONNX Runtime.

    python bench/c_export.py --data-dir MNIST            # CNN1 on MNIST, which comes with the package

The C program has one thread and classifies an image at a time; the others take batches, with OMP_NUM_THREADS threads.
"""

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import _bench as bench
import onnxruntime
import torch
import tyro

from ttfs_triton.chip import simulate
from ttfs_triton.data.pixels import to_float
from ttfs_triton.evaluate.load import load_network, load_test_images
from ttfs_triton.export import to_c, to_onnx
from ttfs_triton.export.compare import compile_c, raw_bytes
from ttfs_triton.model import LoadError


@dataclasses.dataclass
class Options:
    """Network, grid and images."""

    run: tyro.conf.Positional[str] = "bundled:cnn1-mnist"  # a run's folder, its weights, or bundled:NAME
    data_dir: Path | None = None
    """Local folder of the data set. Default: as in training."""
    time_steps: int = 32
    weight_bits: int = 8
    images: int = 2000
    batch_size: int = 250
    rounds: int = 5
    output: Path = bench.RESULTS


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    try:
        loaded = load_network(options.run)
        data = load_test_images(loaded, data_dir=options.data_dir, max_samples=options.images)
    except (LoadError, ValueError, OSError) as error:
        sys.exit(f"c_export: {error}")
    network, pixels = loaded.network, data.images_at(torch.arange(len(data)))
    batches, raw = to_float(pixels).split(options.batch_size), raw_bytes(pixels)
    steps, bits = options.time_steps, options.weight_bits
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    model = to_onnx(network).SerializeToString()
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory() as folder:
        program = compile_c(to_c(network, steps=steps, weight_bits=bits), Path(folder))

        def run_c() -> torch.Tensor:
            printed = subprocess.run([program], input=raw, capture_output=True, check=True).stdout
            return torch.tensor([int(word) for word in printed.split()])

        def run_onnx() -> torch.Tensor:
            logits = [session.run(["logits"], {"images": part.numpy()})[0] for part in batches]
            return torch.cat([torch.from_numpy(part) for part in logits]).argmax(1)

        contenders: dict[str, Callable[[], torch.Tensor]] = {
            "C, cc -O3": run_c,
            "simulator": lambda: simulate(network, batches, steps=steps, weight_bits=bits).predictions,
            "onnxruntime, closed form": run_onnx,
        }
        classes = {name: run() for name, run in contenders.items()}  # which also warms up
        if not torch.equal(classes["C, cc -O3"], classes["simulator"]):
            raise bench.DisagreementError("the program and the simulator must give the same classes")
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for name in bench.in_turns(list(contenders), options.rounds):
            start = time.perf_counter()
            contenders[name]()
            times[name].append(1000 * (time.perf_counter() - start) / len(data))
    rows = [
        {
            "op": loaded.files.name,
            "provider": name,
            **bench.percentiles(ms, 4),
            "images_per_second": round(1000 / sorted(ms)[len(ms) // 2], 1),
            "accuracy": round((classes[name] == data.labels).double().mean().item(), 4),
        }
        for name, ms in times.items()
    ]
    bench.print_table(list(rows[0]), [list(row.values()) for row in rows], left=("provider",))
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    about = bench.environment(torch.device("cpu"))
    about |= {"cc": compiler, "onnxruntime": onnxruntime.__version__, "images": len(data)}
    about |= {"time_steps": steps, "weight_bits": bits, "batch_size": options.batch_size}
    bench.write(options.output, "c_export-cpu", rows, about)


if __name__ == "__main__":
    main()
