"""Operator calls, kernel launches, host synchronisations and bytes of a training step, on the virtual device.

    python -m tests.virtual_cuda.step_calls

A step of the recipe `vgg16-cifar10` by the trainer itself, after the first one. The network is a sixteenth as
wide and the batch small, since kernels are interpreted here: calls do not depend on either, bytes do. Operators are
calls that launch a kernel or a copy, those inside our own operators included; launches are those of Triton kernels.
A step that counts spikes is "sampled".
"""

import gc
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tests.virtual_cuda import Record, install, recording

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "ttfs_triton" / "recipes" / "vgg16-cifar10.yaml"
BATCH = 2


def main() -> None:
    sys.path.insert(0, str(ROOT / "bench"))
    import _bench as bench

    install()
    rows, operators = [], {}
    # Interpreted steps take minutes, and know no bfloat16 products.
    for backend, precision in (("torch", "no"), ("torch", "bf16"), ("triton", "fp16")):
        for kind, record in measure(backend, precision).items():
            rows.append(row(backend, precision, kind, record))
            operators[f"{backend}, {precision}, {kind}"] = dict((record.operators + record.launches).most_common())
            print(rows[-1], flush=True)
    bench.write(bench.RESULTS, "step_calls", rows, bench.environment(torch.device("cpu")) | {"operators": operators})


def measure(backend: str, precision: str) -> dict[str, Record]:
    """Records of a plain step and, where it is quick, of a sampled one."""
    from accelerate.state import AcceleratorState

    from ttfs_triton.train import TrainConfig, loop, train
    from ttfs_triton.train.config import read_recipe

    records: list[Record] = []
    step = loop.TrainingLoop._train_step

    def watched(trainer: Any, micro_batches: Any) -> None:
        with recording() as record:
            step(trainer, micro_batches)
        records.append(record)

    steps = 4 if backend == "torch" else 2
    changes = {"dataset": "sample", "image_size": 32, "width": 1 / 16, "batch_size": BATCH, "num_workers": 0}
    changes |= {"max_train_samples": steps * BATCH, "max_test_samples": 2, "validation_fraction": 0, "epochs": 1}
    changes |= {"statistics_steps": 3, "backend": backend, "mixed_precision": precision}
    loop.TrainingLoop._train_step, before = watched, step  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            values = read_recipe(RECIPE).values(None) | changes | {"output_dir": Path(folder) / "run"}
            train(TrainConfig(**values))
    finally:
        loop.TrainingLoop._train_step = before  # type: ignore[method-assign]
        AcceleratorState._reset_state(reset_partial_state=True)
        gc.collect()  # the run's tensors, which the next one's peak would count
    return {"plain": records[1]} | ({"sampled": records[3]} if backend == "torch" else {})


def row(backend: str, precision: str, kind: str, record: Record) -> dict[str, Any]:
    waits: Counter[str] = record.synchronisations
    return {
        "case": f"vgg16-w0.0625-b{BATCH}",
        "backend": backend,
        "mixed_precision": precision,
        "step": kind,
        "operators": record.operators.total(),
        "launches": record.launches.total(),
        "synchronisations": waits.total(),
        "waits_for": " ".join(f"{name}×{count}" for name, count in sorted(waits.items())),
        "peak_mib": round(record.peak_bytes / 2**20, 2),
    }


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    main()
