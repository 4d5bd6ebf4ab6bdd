"""Tables, plots and one HTML page of an evaluated network, for a phone or a desktop."""

from ttfs_triton.report.energy_tables import (
    chips_table,
    comparison_table,
    csv_rows,
    print_chips,
    print_comparison,
    print_estimate,
    write_csv,
)
from ttfs_triton.report.figures import draw_chips, draw_layers, draw_sensitivity, draw_sweep
from ttfs_triton.report.page import PageData, Sample, render_page, write_page
from ttfs_triton.report.raster import LayerSpikes, spikes_of
from ttfs_triton.report.tables import on_terminal, sweep_details

__all__ = [
    "LayerSpikes",
    "PageData",
    "Sample",
    "chips_table",
    "comparison_table",
    "csv_rows",
    "draw_chips",
    "draw_layers",
    "draw_sensitivity",
    "draw_sweep",
    "on_terminal",
    "print_chips",
    "print_comparison",
    "print_estimate",
    "render_page",
    "spikes_of",
    "sweep_details",
    "write_csv",
    "write_page",
]
