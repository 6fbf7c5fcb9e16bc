"""The few kinds of plot that reports need, and how a plot becomes a file."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# Told apart by people who see few colours, too (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def curves(
    series: Mapping[str, tuple[Sequence[float | int], Sequence[Sequence[float | None]]]],
    *,
    title: str,
    x: str,
    y: str,
    y_range: tuple[float | int | None, float | int | None] = (None, None),
) -> Figure:
    """Lines with a band from the lowest to the highest seed around each mean.

    Args:
      series: by name, the x values and a sequence of y values a seed; None and NaN leave a gap. Both may be empty.
      title: above the plot.
      x: label of the x axis.
      y: label of the y axis.
      y_range: from and to; None lets the values decide.
    """
    many = len(series) > len(COLORS)  # their names would hide the lines: beside the plot
    drawn = Figure(figsize=(9.6 if many else 7.2, 4.4), layout="constrained", dpi=110)
    axes = drawn.subplots()
    for i, (name, (at, seeds)) in enumerate(series.items()):
        values = np.ma.masked_invalid(np.array(seeds, float))
        color, style = COLORS[i % len(COLORS)], ("-", "--", ":")[i // len(COLORS) % 3]
        # Without any seed there is no line, but a name in the legend.
        axes.plot(at, values.mean(0) if len(values) else [], style, color=color, lw=1.8, label=name)
        if len(values) > 1:
            axes.fill_between(at, values.min(0), values.max(0), color=color, alpha=0.15, lw=0)
    axes.set(title=title, xlabel=x, ylabel=y, ylim=y_range)
    axes.grid(alpha=0.25)
    if many:
        drawn.legend(fontsize=9, loc="outside right upper")
    elif series:
        axes.legend(fontsize=9)
    return drawn


def heatmap(
    values: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    x: str,
    y: str,
) -> Figure:
    """A table of numbers as colours, each with its value; the best of each row is framed, a missing one is blank."""
    grid = np.ma.masked_invalid(np.array(values, float))
    drawn = Figure(figsize=(1.6 + 0.85 * len(columns), 1.4 + 0.5 * len(rows)), layout="constrained", dpi=110)
    axes = drawn.subplots()
    image = axes.imshow(grid, cmap="viridis", aspect="auto")
    middle = (grid.max() + grid.min()) / 2 if grid.count() else 0.0
    for i, row in enumerate(grid):
        best = int(row.argmax()) if row.count() else None
        for j, value in enumerate(row):
            if value is np.ma.masked:
                continue
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", color="white" if value < middle else "black")
            if j == best:
                axes.add_patch(_frame(j, i))
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    drawn.colorbar(image)
    return drawn


def _frame(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor="#d55e00", lw=2.2)
