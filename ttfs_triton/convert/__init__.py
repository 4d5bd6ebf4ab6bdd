"""Conversion of trained ANNs, given as modules or files of weights, to spiking networks; and calibration."""

from ttfs_triton.convert.ann_file import Converted, calibrate_converted, convert
from ttfs_triton.convert.calibration import Calibration, LayerCalibration, calibrate_network, fit_range
from ttfs_triton.convert.from_ann import ANNReport, LayerLoss, convert_ann
from ttfs_triton.convert.source import ConversionError, Weights, WeightsError, open_weights

__all__ = [
    "ANNReport",
    "Calibration",
    "ConversionError",
    "Converted",
    "LayerCalibration",
    "LayerLoss",
    "Weights",
    "WeightsError",
    "calibrate_converted",
    "calibrate_network",
    "convert",
    "convert_ann",
    "fit_range",
    "open_weights",
]
