"""A report of one evaluated network: one HTML page for a phone or a desktop, without a network connection."""

from ttfs_triton.report.data import ReportData, Sample
from ttfs_triton.report.page import render_report, write_report
from ttfs_triton.report.raster import LayerSpikes, spikes_of

__all__ = ["LayerSpikes", "ReportData", "Sample", "render_report", "spikes_of", "write_report"]
