"""Images per second of a network's exported C, beside the simulator that it equals and ONNX Runtime.

    python bench/c_export.py --data-dir MNIST            # CNN1 on MNIST, which comes with the package

The C program has one thread and classifies an image at a time; the others take batches, with OMP_NUM_THREADS threads.
For every value of --activities, the initial potentials of all hidden layers are shifted until this share of a layer's
neurons fires: with the same images and weights, only the number of spikes differs, and accuracy is lost. If QEMU and
its compiler are installed, the instructions per image and bytes of memory are counted for a Cortex-M4.
"""

import copy
import dataclasses
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _bench as bench
import onnxruntime
import torch
import tyro
from _cortex_m import TOOLS, run_on_cortex_m4
from torch import Tensor, nn

from ttfs_triton.chip import simulate
from ttfs_triton.data.pixels import to_float
from ttfs_triton.evaluate.load import load_network, load_test_images
from ttfs_triton.export import to_c, to_onnx
from ttfs_triton.export.compare import compile_c, raw_bytes
from ttfs_triton.model import LoadError
from ttfs_triton.nn.graph import Stage, network_graph
from ttfs_triton.nn.on_chip import contract, psp_persistence


@dataclasses.dataclass
class Options:
    """Network, grid and images."""

    run: tyro.conf.Positional[str] = "bundled:cnn1-mnist"  # a run's folder, its weights, or bundled:NAME
    data_dir: Path | None = None  # local folder of the data set; default: as in training
    activities: tuple[float, ...] = (0.3, 0.1, 0.05)
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
    pixels = data.images_at(torch.arange(len(data)))
    with tempfile.TemporaryDirectory() as folder:
        networks = []
        for activity in (None, *options.activities):
            network = loaded.network
            if activity is not None:
                network = with_activity(network, to_float(pixels[:50]), activity, options.time_steps)
            networks.append(contenders(network, pixels, options, Path(tempfile.mkdtemp(dir=folder))))
        keys = [(number, name) for number, (_, calls) in enumerate(networks) for name in calls]
        ms: dict[tuple[int, str], list[float]] = {key: [] for key in keys}
        for number, name in bench.in_turns(keys, options.rounds):
            start = time.perf_counter()
            networks[number][1][name]()
            ms[number, name].append(1000 * (time.perf_counter() - start) / len(data))
        rows = [
            {
                "op": loaded.files.name,
                **networks[number][0],
                "provider": name,
                **bench.percentiles(times, 4),
                "images_per_second": round(1000 / sorted(times)[len(times) // 2], 1),
                "accuracy": round((networks[number][1][name]() == data.labels).double().mean().item(), 4),
            }
            for (number, name), times in ms.items()
        ]
    bench.print_table(list(rows[0]), [list(row.values()) for row in rows], left=("provider",), width=160)
    compiler, *emulator = (
        subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
        for tool in ("cc", *filter(shutil.which, TOOLS))
    )
    about = bench.environment(torch.device("cpu")) | {"images": len(data)}
    about |= {"cc": compiler, "cortex-m4": ", ".join(emulator) or None, "onnxruntime": onnxruntime.__version__}
    about |= {"time_steps": options.time_steps, "weight_bits": options.weight_bits, "batch_size": options.batch_size}
    about["activity"] = "share of hidden neurons that fire; but for the first rows by shifts, which cost accuracy"
    about["instructions, flash, ram"] = "an image on a Cortex-M4 in QEMU, gcc -O2, first 10 images; bytes of net.c"
    bench.write(options.output, f"c_export-cpu-{loaded.files.name}", rows, about)


@torch.no_grad()
def with_activity(network: nn.Module, images: Tensor, activity: float, steps: int) -> nn.Module:
    """A copy of a network in which about this share of the neurons fires, in every hidden layer, for these images."""
    network = copy.deepcopy(network)

    def fire(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        if stage.kind == "spiking":
            layer, (weight, bias) = stage.weighted, stage.synapses()
            assert layer.bias is not None
            assert bias is not None
            at_end = inputs + psp_persistence(layer) * inputs.sign()
            potentials = contract(layer, at_end, weight.float(), bias.float()).flatten()
            # The last comparison is half a step before the end, with a threshold that is not yet 0.
            layer.bias.add_(0.5 / steps - potentials.kthvalue(round((1 - activity) * len(potentials))).values)
        return stage.activations(inputs, skip)

    network_graph(network).run(images, fire)
    return network


def contenders(
    network: nn.Module, pixels: Tensor, options: Options, folder: Path
) -> tuple[bench.Row, dict[str, Callable[[], Tensor]]]:
    """Columns about the network's work, and calls that return classes, by contender; the classes have been compared."""
    batches, raw = to_float(pixels).split(options.batch_size), raw_bytes(pixels)
    grid: dict[str, Any] = {"steps": options.time_steps, "weight_bits": options.weight_bits}
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    model, providers = to_onnx(network).SerializeToString(), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model, settings, providers=providers)
    source, simulated = to_c(network, **grid), simulate(network, batches, **grid)
    program = compile_c(source, folder)

    def run_c() -> Tensor:
        return torch.tensor([int(word) for word in subprocess.check_output([program], input=raw).split()])

    def run_onnx() -> Tensor:
        logits = [session.run(["logits"], {"images": part.numpy()})[0] for part in batches]
        return torch.cat([torch.from_numpy(part) for part in logits]).argmax(1)

    if not torch.equal(run_c(), simulated.predictions):
        raise bench.DisagreementError("the program and the simulator must give the same classes")
    operations = sum(layer.synaptic_operations for layer in simulated.counts.layers) / len(pixels)
    about: bench.Row = {"activity": round(simulated.counts.sparsity, 3), "operations": round(operations)}
    if all(map(shutil.which, TOOLS)):
        classes, counted = run_on_cortex_m4(source, pixels[:10])
        about |= counted
        if classes != simulated.predictions[:10].tolist():
            raise bench.DisagreementError("the Cortex-M4 and the simulator must give the same classes")
    return about, {
        "C, cc -O3": run_c,
        "simulator": lambda: simulate(network, batches, **grid).predictions,
        "onnxruntime, closed form": run_onnx,
    }


if __name__ == "__main__":
    main()
