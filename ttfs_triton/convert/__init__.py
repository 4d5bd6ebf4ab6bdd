"""Weights from elsewhere: trained artificial networks, of ours and of other projects, as spiking networks."""

from ttfs_triton.convert.conversion import Converted, convert
from ttfs_triton.convert.errors import ConversionError, WeightsError
from ttfs_triton.convert.folded import FoldedANN
from ttfs_triton.convert.report import ConversionReport, SourceEntry, TargetEntry
from ttfs_triton.convert.source import Weights, open_weights

__all__ = [
    "ConversionError",
    "ConversionReport",
    "Converted",
    "FoldedANN",
    "SourceEntry",
    "TargetEntry",
    "Weights",
    "WeightsError",
    "convert",
    "open_weights",
]
