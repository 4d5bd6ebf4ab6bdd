"""Work of the stages of `gpu.py`, which run in a process per stage; needs neither tyro nor a data set.

python bench/_gpu_work.py NAME [ARGUMENT...]
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F


def versions() -> int:
    """Print the versions of software and the device; returns 1 if Triton kernels cannot run."""
    from ttfs_kernels.checks import why_no_triton
    from ttfs_triton.evaluate.machine import describe_machine

    print(describe_machine())
    reason = why_no_triton(torch.device("cuda"), torch.bfloat16) if torch.cuda.is_available() else "no GPU"
    print(reason or f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    return int(reason is not None)


def pytest(*arguments: str) -> int:
    """Run tests, in up to 16 processes, so that kernels are compiled in parallel."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *arguments]
    if find_spec("xdist") is not None:
        words += ["-n", str(min(16, os.cpu_count() or 1)), "--dist", "loadfile"]
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.execv(sys.executable, words)


def step() -> int:
    """Run two training steps of VGG16 per backend; the second must not wait for the device."""
    from ttfs_triton.nn import Neuron, networks

    for backend in ("triton", "torch"):
        torch.manual_seed(0)
        network = networks.vgg16(backend=backend, neuron=Neuron(surrogate_width=0.5), readout="potential_end").cuda()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
        images = torch.rand(256, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (256,), device="cuda")
        for mode in ("default", "error"):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(mode)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
            torch.cuda.set_sync_debug_mode("default")
        if not torch.isfinite(loss):
            print(f"{backend}: the loss is {loss.item()}")
            return 1
        print(f"{backend}: loss {loss.item():.4f} after two steps, no synchronisation")
    return 0


def graph(output: str) -> int:
    """Train on the bundled images without and with a CUDA graph; returns 1 if losses differ or the graph is slower."""
    from ttfs_triton.command_line import recipe
    from ttfs_triton.train import TrainConfig, train
    from ttfs_triton.train.config import read_recipe

    keys = read_recipe(recipe("vgg16-cifar10")).values(None)
    changes = {"dataset": "sample", "data_dir": None, "image_size": 32, "batch_size": 128, "epochs": 6}
    changes |= {"mixed_precision": "bf16", "statistics_steps": 1000, "overwrite": True}
    losses, speed = [], []
    for mode in ("off", "on"):
        folder = Path(output) / f"graph-{mode}"
        train(TrainConfig(**keys | changes | {"cuda_graph": mode, "output_dir": folder}))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        losses.append(torch.tensor([line["train_loss"] for line in lines]))
        speed.append(max(line["images_per_second"] for line in lines))
    # Library kernels may add in a different order in every run, and a graph reads its learning rate as float32.
    difference = abs(losses[0][0] / losses[1][0] - 1).item()  # later ones drift apart
    print(f"first losses differ by {difference:.1e}; {speed[0]:.0f} images/s, with a CUDA graph {speed[1]:.0f}")
    return int(difference > 1e-2 or speed[1] < speed[0])


WORK = (versions, pytest, step, graph)


if __name__ == "__main__":
    sys.exit({work.__name__: work for work in WORK}[sys.argv[1]](*sys.argv[2:]))
