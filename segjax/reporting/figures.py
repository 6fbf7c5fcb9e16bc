"""Figures of sweeps and of single runs, drawn with matplotlib and encoded as PNG."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from segjax.reporting.charts import Numbers, Range, Series, running_mean, smoothing_window
from segjax.storage import printable

# The palette of Okabe and Ito, which readers with a colour vision deficiency can distinguish.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
_REFERENCE, _FAINT = "#57606a", "#b9c0c7"
_STYLES = ("-", "--", ":")
# Two figures of a single run fit in one row of a wide page.
_SIZE, _DPI = (5.2, 3.9), 150


def png(figure: Figure) -> bytes:
    """Encodes a figure as a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that the font lacks, as of Chinese, is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(file, format="png")
    return file.getvalue()


def plain(name: str) -> str:
    r"""Returns a name as matplotlib draws it unchanged: no formula between dollars, no label hidden by an underscore.

    >>> print(plain("$x$"), plain("_a"), sep=";")
    \$x\$; _a
    """
    text = printable(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def curves(
    series: Mapping[str, Series],
    *,
    title: str,
    x: str,
    y: str = "",
    x_range: Range = (None, None),
    y_range: Range = (None, None),
    smoothed: bool = False,
    checkpoint_step: int | None = None,
    reference: tuple[str, float | int] | None = None,
) -> Figure:
    """Draws the mean over seeds of each series, with a band from the lowest to the highest seed.

    None and NaN leave a gap, and a series without seeds appears in the legend only. matplotlib chooses a limit that is
    None. `smoothed` draws the values faintly, and on top their running mean over a twentieth of the line;
    `checkpoint_step` is the x of a dotted vertical line, `reference` the name and y of a dashed horizontal line.
    """
    figure = Figure(figsize=_SIZE, layout="constrained", dpi=_DPI)
    axes = figure.subplots()
    for i, (name, (xs, seeds)) in enumerate(series.items()):
        color, style = COLORS[i % len(COLORS)], _STYLES[i // len(COLORS) % len(_STYLES)]
        values = np.ma.masked_invalid(np.array(seeds, float))
        mean = values.mean(0) if len(values) else []
        window = smoothing_window(len(mean))
        if smoothed and window > 1:
            axes.plot(xs, mean, color=color, lw=0.8, alpha=0.3)
            mean = running_mean(mean, window)
        marker = "o" if checkpoint_step is not None and len(mean) < 30 else None
        axes.plot(xs if len(values) else [], mean, style, marker=marker, ms=3.5, color=color, lw=1.8, label=plain(name))
        if len(values) > 1:
            axes.fill_between(xs, values.min(0), values.max(0), color=color, alpha=0.15, lw=0)
    if checkpoint_step is not None:
        axes.axvline(checkpoint_step, color=_REFERENCE, lw=1, ls=":")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if reference is not None:
        axes.axhline(reference[1], color=_REFERENCE, lw=1, ls="--", label=plain(reference[0]))
    _style(axes, title=title, xlabel=x, ylabel=y, xlim=x_range, ylim=y_range)
    if len(series) > 5:  # a legend inside would cover the lines
        figure.set_size_inches(_SIZE[0] + 0.7 + 0.075 * max(map(len, series)), _SIZE[1])
        figure.legend(fontsize=8, loc="outside right upper", handlelength=3.2)
    elif len(series) > 1 or reference is not None:
        axes.legend(fontsize=8)
    return figure


def steps(values: Mapping[str, Sequence[int]], edges: Numbers, *, title: str, x: str, y: str) -> Figure:
    """Draws histograms over the same bins as steps, with a logarithmic axis of counts.

    `edges` has one value more than there are bins.
    """
    figure = Figure(figsize=_SIZE, layout="constrained", dpi=_DPI)
    axes = figure.subplots()
    for (name, counts), color in zip(values.items(), COLORS, strict=False):
        axes.stairs(counts, edges, color=color, lw=1.8, label=plain(name), fill=False, baseline=None)
    if max((max(counts, default=0) for counts in values.values()), default=0) > 0:
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(bottom=0.5)
    _style(axes, title=title, xlabel=x, ylabel=y, xlim=(edges[0], edges[-1]))
    axes.legend(fontsize=8)
    return figure


def dots(values: Mapping[str, Sequence[float]], *, title: str, x: str) -> Figure:
    """Draws one row per name: a small dot per seed and a large one at their mean, the highest mean at the top."""
    rows = sorted((row for row in values.items() if len(row[1])), key=lambda row: float(np.mean(row[1])))
    size = (_SIZE[0] + 0.05 * max(map(len, values)), 1.1 + 0.27 * len(rows))
    figure = Figure(figsize=size, layout="constrained", dpi=_DPI)
    axes = figure.subplots()
    for height, (_, seeds) in enumerate(rows):
        axes.plot([min(seeds), max(seeds)], [height] * 2, color=COLORS[0], lw=1.2, alpha=0.5)
        axes.plot(seeds, [height] * len(seeds), "o", ms=4, color=COLORS[0], alpha=0.5)
        axes.plot(np.mean(seeds), height, "o", ms=7, color=COLORS[1])
    axes.set_yticks(range(len(rows)), [plain(name) for name, _ in rows])
    _style(axes, title=title, xlabel=x)
    return figure


def heatmap(
    values: Sequence[Sequence[float]],
    spreads: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    x: str,
    y: str,
) -> Figure:
    """Draws a grid of numbers as colours, each with its spread, and a frame around the highest of each row.

    A cell of value NaN is grey; a spread of NaN, as of one seed, is left out.
    """
    grid = np.ma.masked_invalid(np.array(values, float))
    figure = Figure(figsize=(1.6 + 0.85 * len(columns), 1.4 + 0.6 * len(rows)), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.set_facecolor("#d8dee4")
    image = axes.imshow(grid, cmap="viridis", aspect="auto")
    middle = (grid.max() + grid.min()) / 2 if grid.count() else 0.0
    for i, row in enumerate(grid):
        best = int(row.argmax()) if row.count() else None
        for j, value in enumerate(row):
            if value is np.ma.masked:
                continue
            spread = "" if np.isnan(spreads[i][j]) else f"\n± {spreads[i][j]:.3f}"
            color = "white" if value < middle else "black"
            axes.text(j, i, f"{value:.3f}{spread}", ha="center", va="center", fontsize=8.5, color=color)
            if j == best:
                axes.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, edgecolor=COLORS[1], lw=2.2))
    axes.set(title=plain(title), xlabel=plain(x), ylabel=plain(y))
    axes.set_xticks(range(len(columns)), [plain(name) for name in columns])
    axes.set_yticks(range(len(rows)), [plain(name) for name in rows])
    figure.colorbar(image)
    return figure


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Draws a confusion matrix in percent of the pixels of each true class, one per row.

    The row of a class without true pixels is blank; with more than four classes, cells below 0.5 % are blank too.
    """
    counts = np.array(confusion, float)
    totals = counts.sum(axis=1, keepdims=True)
    fractions = np.ma.array(counts / np.maximum(totals, 1), mask=np.broadcast_to(totals == 0, counts.shape))
    many, few = len(classes) > 12, len(classes) <= 4
    cell_size = 1.1 if few else 0.36 if many else 0.42
    side = cell_size * len(classes) + 0.085 * max(map(len, classes))  # inches; the second term is for the class names
    figure = Figure(figsize=(side + 0.8, side + 0.5), layout="constrained", dpi=_DPI)
    axes, names = figure.subplots(), list(map(plain, classes))
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(fractions.shape):
        fraction = fractions[i, j]
        if fraction is np.ma.masked or (not few and fraction < 0.005):
            continue
        text = f"{100 * fraction:.2f} %\n{counts[i, j]:,.0f}" if few else f"{100 * fraction:.0f}"
        color = "w" if fraction > 0.6 else "k"
        axes.text(j, i, text, ha="center", va="center", fontsize=7.5 if many else 9, color=color)
    axes.set(xlabel="predicted", ylabel="truth")
    axes.set_xticks(range(len(classes)), names, rotation=0 if few else 90, fontsize=9)
    axes.set_yticks(range(len(classes)), names, rotation=90 if few else 0, va="center", fontsize=9)
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e3e7ea", lw=0.6)
    axes.tick_params(which="both", length=0)
    return figure


def reliability_figure(edges: Numbers, confidence: Numbers, accuracy: Numbers, count: Sequence[int]) -> Figure:
    """Draws accuracy against confidence, the gap between them, and below a histogram of the pixels per bin.

    `edges` has one value more than there are bins. Confidence and accuracy of an empty bin are NaN.
    """
    figure = Figure(figsize=_SIZE, layout="constrained", dpi=_DPI)
    axes, histogram = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    left, width, middle = np.array(edges[:-1]), np.diff(edges), np.nan_to_num(np.array(confidence, float))
    accuracy = np.nan_to_num(np.array(accuracy, float))
    axes.plot((0, 1), (0, 1), color=_REFERENCE, lw=1, ls="--", label="perfect calibration")
    axes.bar(left, accuracy, width, align="edge", color=COLORS[0], alpha=0.75, label="accuracy")
    gap = {"fill": False, "edgecolor": COLORS[1], "lw": 1, "hatch": "///"}
    axes.bar(left, accuracy - middle, width, bottom=middle, align="edge", label="gap to the confidence", **gap)
    _style(axes, title="Reliability", ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
    histogram.bar(left, count, width, align="edge", color=_FAINT, edgecolor="w", lw=0.5)
    if max(count) > 0:
        histogram.set_yscale("log", nonpositive="clip")
        histogram.set_ylim(bottom=0.5)
        histogram.set_yticks([10**power for power in range(0, len(str(max(count))), 2)])
        histogram.minorticks_off()
    _style(histogram, xlabel="confidence (largest probability)", ylabel="pixels")
    axes.legend(fontsize=8, loc="upper left")
    return figure


def _style(axes: Axes, **properties: Any) -> None:
    axes.set(**{name: plain(value) if isinstance(value, str) else value for name, value in properties.items()})
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.title.set_fontsize(11)
    axes.spines[["top", "right"]].set_visible(False)
