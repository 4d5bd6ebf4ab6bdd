"""Tables of `kernels.py`: times on the screen, geometric means of ratios."""

import math
from typing import Any

from _kernels_contenders import ANN, AUTO, COMPILED, COMPOSITION, OURS, STACKED, TORCH
from rich import box
from rich.console import Console
from rich.table import Table

PASSES = ("forward", "grad_x", "grad_w", "grad_b", "forward_backward")
PROVIDERS = (OURS, AUTO, TORCH, COMPOSITION, STACKED, COMPILED.format(COMPOSITION), COMPILED.format(STACKED))
PROVIDERS = (*PROVIDERS, ANN, COMPILED.format(ANN))
WITHOUT_RIVALS = (OURS, AUTO, TORCH)

Row = dict[str, Any]


def groups(rows: list[Row]) -> dict[tuple[str, float], list[Row]]:
    """Rows by dtype and σ."""
    found: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        found.setdefault((row["dtype"], row["sigma"]), []).append(row)
    return found


def times_of(rows: list[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """(case, pass) → provider → median time, of what was timed."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        times = found.setdefault((row["case"], row["pass"]), {})
        if row["ms_p50"] != "":
            times[row["provider"]] = row["ms_p50"]
    return found


def providers_of(rows: list[Row]) -> list[str]:
    present = {row["provider"] for row in rows}
    return [name for name in PROVIDERS if name in present]


def geometric_means(rows: list[Row]) -> list[Row]:
    """How many times as long each baseline takes as each of ours: geometric means over layers, for each pass.

    Only layers on which both were timed count; `layers` says how many.
    """
    means = []
    for (dtype, sigma), chosen in groups(rows).items():
        times = times_of(chosen)
        names = providers_of(chosen)
        for name in PASSES:
            for own in (name for name in names if name in WITHOUT_RIVALS):
                for rival in (name for name in names if name not in WITHOUT_RIVALS):
                    both = [t for (_, pass_), t in times.items() if pass_ == name and own in t and rival in t]
                    logarithms = [math.log(t[rival] / t[own]) for t in both]
                    means.append(
                        {
                            "dtype": dtype,
                            "sigma": sigma,
                            "pass": name,
                            "provider": own,
                            "against": rival,
                            "ratio": round(math.exp(sum(logarithms) / len(both)), 3) if both else "",
                            "layers": len(both),
                        }
                    )
    return means


def show(console: Console, rows: list[Row], means: list[Row]) -> None:
    """One table of times and one of means for each dtype and σ."""
    for (dtype, sigma), chosen in groups(rows).items():
        names = providers_of(chosen)
        table = new_table(f"Milliseconds, {dtype}, σ = {sigma:g}", ("layer", "pass", *names, "floor", "% of ceiling"))
        for (case, name), times in times_of(chosen).items():
            own = [row for row in chosen if row["case"] == case and row["pass"] == name]
            table.add_row(
                case,
                name.replace("_backward", "+backward"),
                *(digits(times[provider]) if provider in times else verdict(own, provider) for provider in names),
                digits(own[0]["floor_ms"]) if own[0]["floor_ms"] != "" else "",
                f"{own[0]['percent_of_ceiling']}",
            )
        console.print(table)
        show_means(console, [mean for mean in means if (mean["dtype"], mean["sigma"]) == (dtype, sigma)])
    failed = [row for row in rows if row["check"] != "passed"]
    for row in failed:
        console.print(
            f"{row['case']} {row['dtype']} {row['pass']}, {row['provider']}: check {row['check']}, "
            f"error {row['max_err'] or 'unknown'}; not timed",
            soft_wrap=True,
        )


def show_means(console: Console, means: list[Row]) -> None:
    rivals = list(dict.fromkeys(mean["against"] for mean in means))
    table = new_table(
        "Their time over ours, geometric mean over layers (above 1: ours is faster)", ("", "pass", *rivals)
    )
    for own in dict.fromkeys(mean["provider"] for mean in means):
        for name in PASSES:
            ratios = [mean["ratio"] for mean in means if (mean["provider"], mean["pass"]) == (own, name)]
            table.add_row(own, name.replace("_backward", "+backward"), *map(str, ratios))
    console.print(table)


def new_table(title: str, headings: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < 2 else "right", no_wrap=i < 2)
    return table


def verdict(rows: list[Row], provider: str) -> str:
    return "failed check" if any(row["provider"] == provider for row in rows) else ""


def digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"
