"""What people look at: tables, plots, and one HTML page of an evaluated network, for a phone or a desktop."""

from ttfs_triton.report.data import ReportData, Sample
from ttfs_triton.report.energy_plots import draw_accuracy, draw_chips, draw_layers, draw_sensitivity
from ttfs_triton.report.energy_tables import (
    chips_table,
    comparison_table,
    csv_rows,
    format_energy,
    print_report,
    report_table,
    sensitivity_table,
    write_csv,
)
from ttfs_triton.report.page import render_report, write_report
from ttfs_triton.report.raster import LayerSpikes, spikes_of
from ttfs_triton.report.sweep_plot import draw_sweep

__all__ = [
    "LayerSpikes",
    "ReportData",
    "Sample",
    "chips_table",
    "comparison_table",
    "csv_rows",
    "draw_accuracy",
    "draw_chips",
    "draw_layers",
    "draw_sensitivity",
    "draw_sweep",
    "format_energy",
    "print_report",
    "render_report",
    "report_table",
    "sensitivity_table",
    "spikes_of",
    "write_csv",
    "write_report",
]
