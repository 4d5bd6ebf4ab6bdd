"""Trained networks for other programs: C (the simulator's integers), ONNX (the closed form), NIR (neurons in steps)."""

from ttfs_triton.export.c_source import to_c
from ttfs_triton.export.compare import Comparison, TimeDifference, compare_c, compare_nir, compare_onnx
from ttfs_triton.export.nir_clock import Clock, decide, input_frames
from ttfs_triton.export.nir_graph import to_nir
from ttfs_triton.export.onnx_graph import to_onnx

__all__ = [
    "Clock",
    "Comparison",
    "TimeDifference",
    "compare_c",
    "compare_nir",
    "compare_onnx",
    "decide",
    "input_frames",
    "to_c",
    "to_nir",
    "to_onnx",
]
