"""Activity of each layer, as a table and as JSON values."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ttfs_triton.nn import LayerStatistics


def layer_table(layers: Sequence[LayerStatistics]) -> Table:
    """A row for each layer: neurons, spikes a sample, and what share of the neurons does what."""
    table = Table("layer", "neurons", "spikes / image", "active", "saturated", "silent", "never active")
    for column in table.columns[1:]:
        column.justify = "right"
    for layer in layers:
        table.add_row(
            layer.name,
            f"{layer.neurons:,}",
            f"{layer.active / max(1, layer.samples):,.1f}",
            *(
                f"{share:.2%}"
                for share in (
                    layer.active_fraction,
                    layer.saturated_fraction,
                    layer.silent_fraction,
                    layer.never_active_fraction,
                )
            ),
        )
    return table


def layer_rows(layers: Sequence[LayerStatistics]) -> list[dict[str, Any]]:
    """The same figures as JSON values: counts summed over the samples."""
    return [
        {
            "name": layer.name,
            "neurons": layer.neurons,
            "samples": layer.samples,
            "spikes": layer.active,
            "saturated": layer.saturated,
            "silent": layer.silent,
            "never_active": layer.never_active,
            "sparsity": layer.active_fraction,
            "output": layer.output,
        }
        for layer in layers
    ]
