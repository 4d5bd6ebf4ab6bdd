"""Tables, plots and HTML pages of evaluated networks, for terminals, phones and desktops."""

from ttfs_triton.report.figures import LayerSpikes, spikes_of
from ttfs_triton.report.page import PageData, Sample, render_page, write_page
from ttfs_triton.report.tables import (
    chips_table,
    comparison_table,
    print_chips,
    print_comparison,
    print_estimate,
)

__all__ = [
    "LayerSpikes",
    "PageData",
    "Sample",
    "chips_table",
    "comparison_table",
    "print_chips",
    "print_comparison",
    "print_estimate",
    "render_page",
    "spikes_of",
    "write_page",
]
