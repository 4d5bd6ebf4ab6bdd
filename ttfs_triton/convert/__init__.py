"""Weights from elsewhere: trained artificial networks, of ours and of other projects, as spiking networks."""

from ttfs_triton.convert.calibrate import calibrate
from ttfs_triton.convert.calibration import Calibration, LayerCalibration
from ttfs_triton.convert.conversion import Converted, convert
from ttfs_triton.convert.correlation import layer_correlations
from ttfs_triton.convert.errors import ConversionError, WeightsError
from ttfs_triton.convert.fit_range import fit_range
from ttfs_triton.convert.folded import FoldedANN
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
    "convert",
    "fit_range",
    "layer_correlations",
    "open_weights",
]
