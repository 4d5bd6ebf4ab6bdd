"""Weights from elsewhere: trained artificial networks of other projects as spiking networks."""

from ttfs_triton.convert.calibration import (
    Calibration,
    LayerCalibration,
    calibrate,
    calibrate_converted,
    layer_correlations,
)
from ttfs_triton.convert.checkpoint import ConversionError, WeightsError
from ttfs_triton.convert.conversion import Converted, convert
from ttfs_triton.convert.fit_range import fit_range
from ttfs_triton.convert.fold import FoldedANN
from ttfs_triton.convert.report import ConversionReport, SourceEntry, TargetEntry
from ttfs_triton.convert.source import Weights, open_weights

__all__ = [
    "Calibration",
    "ConversionError",
    "ConversionReport",
    "Converted",
    "FoldedANN",
    "LayerCalibration",
    "SourceEntry",
    "TargetEntry",
    "Weights",
    "WeightsError",
    "calibrate",
    "calibrate_converted",
    "convert",
    "fit_range",
    "layer_correlations",
    "open_weights",
]
