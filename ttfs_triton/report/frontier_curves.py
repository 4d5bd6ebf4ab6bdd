"""All curves of a frontier, section by section, each with its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ttfs_triton.report import frontier_figures as figures
from ttfs_triton.report.frontier_table import FAULTS, FrontierRow

Rows = Sequence[FrontierRow]


@dataclass(frozen=True)
class Figure:
    """A picture and its words.

    Attributes:
        svg: the picture.
        alt: what it shows, for those who do not see it.
        caption: how to read it.
    """

    svg: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Curves:
    """A section of figures.

    Attributes:
        name: identifier in the page.
        title: of the section.
        figures: one or several.
    """

    name: str
    title: str
    figures: tuple[Figure, ...]


def curves(rows: Rows, here: FrontierRow | None = None) -> list[Curves]:
    """All sections of which there is anything to draw.

    Args:
        rows: of a frontier.
        here: a network to be shown among its points.
    """
    chip = figures.memory_chip(rows)
    marks = (
        "Numbers: the activity that was trained for; 8×4: 8 time steps, 4-bit weights. Filled: trained; open: "
        "calibrated, without training. Thin lines: 95% interval of the accuracy."
    )
    dense = " Dashed: the dense ANN at the same precision."
    found = [
        ("operations", "Synaptic operations", [(figures.operations_svg(rows, here), "synaptic operations", marks)]),
    ]
    if chip is not None:
        found += [
            (
                "energy",
                f"Energy on {chip}",
                [
                    (figures.energy_svg(rows, chip, "with_memory", here), "energy with memory", marks + dense),
                    (figures.energy_svg(rows, chip, "arithmetic", here), "energy of arithmetic alone", marks + dense),
                ],
            ),
        ]
    found += [
        (
            "grid",
            "Time steps and weight bits",
            [
                (figures.grid_svg(rows, "time_steps"), "time steps", "Solid: trained on the grid; dashed: calibrated."),
                (
                    figures.grid_svg(rows, "weight_bits"),
                    "weight bits",
                    "Solid: trained on the grid; dashed: calibrated.",
                ),
            ],
        ),
        (
            "faults",
            "Faults",
            [(figures.fault_svg(rows, kind), figures.FAULT_NAMES[kind], "Simulated, on one chip.") for kind in FAULTS],
        ),
        (
            "deadline",
            "Deadline",
            [
                (
                    figures.deadline_svg(rows),
                    "the deadline",
                    "All images decided by then: by the earliest output spike, or by potentials if there is none.",
                )
            ],
        ),
    ]
    sections = []
    for name, title, drawn in found:
        own = tuple(
            Figure(
                svg,
                f"Accuracy against {what}.",
                f"Accuracy against {what}. {how}",
            )
            for svg, what, how in drawn
            if svg is not None
        )
        if own:
            sections.append(Curves(name, title, own))
    return sections
