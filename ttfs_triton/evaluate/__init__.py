"""Scoring a network over a set of images: batches, accuracy, activity, device and versions."""

from ttfs_triton.evaluate.batches import EvaluationBatches
from ttfs_triton.evaluate.machine import device_name, versions
from ttfs_triton.evaluate.score import Evaluation, EvaluationStopped, evaluate, sum_over_processes
from ttfs_triton.nn.statistics import layer_table

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
