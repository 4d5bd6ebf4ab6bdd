"""Scoring a network over a set of images: batches, accuracy, activity, device and versions."""

from ttfs_triton.scoring.batches import EvaluationBatches
from ttfs_triton.scoring.evaluate import Evaluation, EvaluationStopped, evaluate, layer_table, sum_over_processes
from ttfs_triton.scoring.machine import device_name, versions

__all__ = [
    "Evaluation",
    "EvaluationBatches",
    "EvaluationStopped",
    "device_name",
    "evaluate",
    "layer_table",
    "sum_over_processes",
    "versions",
]
