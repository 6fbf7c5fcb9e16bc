"""The plots of a single run, sized to stand two in a row on a page and one in a row on a telephone."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from segjax.reporting.figures import COLORS

_SIZE, _DPI = (5.2, 3.9), 150
_STYLES = ("-", "--", ":")
_MARK, _FAINT = "#57606a", "#b9c0c7"
Line = tuple[Sequence[float | int], Sequence[float | int]]


def training_curve(
    lines: Mapping[str, Line],
    *,
    title: str,
    mark: int,
    smoothed: bool = False,
    unit: bool = False,
    zero: bool = False,
) -> Figure:
    """What was logged through training, a line a name.

    Args:
      lines: by name, steps and values.
      title: above the plot.
      mark: the step of a checkpoint, drawn as a dotted line.
      smoothed: the values are noisy: they are drawn faint, and over them their mean over a twentieth of the line.
      unit: the y axis goes from 0 to 1.
      zero: it begins at 0.
    """
    drawn, axes = _plot(title, "step", "")
    for i, (name, (steps, values)) in enumerate(lines.items()):
        color, style = COLORS[i % len(COLORS)], _STYLES[i // len(COLORS) % len(_STYLES)]
        window = max(1, len(values) // 20)
        if smoothed and window > 1:
            axes.plot(steps, values, color=color, lw=0.8, alpha=0.3)
            axes.plot(steps, _running_mean(values, window), color=color, lw=1.8, label=name)
        else:
            marker = "o" if len(values) < 30 else None
            axes.plot(steps, values, style, marker=marker, ms=3.5, color=color, lw=1.8, label=name)
    axes.axvline(mark, color=_MARK, lw=1, ls=":")
    if unit or zero:
        axes.set_ylim(0, 1.02 if unit else None)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(lines) > 6:
        drawn.legend(fontsize=7.5, loc="outside right upper", handlelength=3.2)
    elif len(lines) > 1:
        axes.legend(fontsize=8)
    return drawn


def confusion_picture(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Where the pixels of each class go: a row a true class, as shares of its pixels, in percent.

    A class without a true pixel has an empty row. Shares under half a percent are left blank where there are more
    than four classes.
    """
    counts = np.array(confusion, float)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.ma.masked_invalid(np.where(totals > 0, counts / np.maximum(totals, 1), np.nan))
    many, few = len(classes) > 12, len(classes) <= 4
    cell = 1.1 if few else 0.36 if many else 0.42
    longest = 0.085 * max(map(len, classes))
    side = cell * len(classes) + longest
    drawn = Figure(figsize=(side + 0.8, side + 0.5), layout="constrained", dpi=_DPI)
    axes = drawn.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(shares.shape):
        share = shares[i, j]
        if share is np.ma.masked or (not few and share < 0.005):
            continue
        text = f"{100 * share:.2f} %\n{counts[i, j]:,.0f}" if few else f"{100 * share:.0f}"
        axes.text(
            j, i, text, ha="center", va="center", fontsize=9 if not many else 7.5, color="w" if share > 0.6 else "k"
        )
    axes.set(xlabel="predicted", ylabel="truth")
    axes.set_xticks(range(len(classes)), classes, rotation=0 if few else 90, fontsize=9)
    axes.set_yticks(range(len(classes)), classes, rotation=90 if few else 0, va="center", fontsize=9)
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e3e7ea", lw=0.6)
    axes.tick_params(which="both", length=0)
    return drawn


def reliability(
    edges: Sequence[float | int],
    confidence: Sequence[float | int],
    accuracy: Sequence[float | int],
    count: Sequence[int],
) -> Figure:
    """Accuracy against confidence, bin by bin, with the gap between them, and below how many pixels a bin holds.

    Args:
      edges: of the bins, one more than bins.
      confidence: mean of each bin, NaN where it is empty.
      accuracy: likewise.
      count: pixels a bin.
    """
    drawn = Figure(figsize=_SIZE, layout="constrained", dpi=_DPI)
    axes, below = drawn.subplots(2, sharex=True, height_ratios=(3, 1))
    left, right, center = np.array(edges[:-1]), np.array(edges[1:]), np.array(confidence, float)
    axes.plot((0, 1), (0, 1), color=_MARK, lw=1, ls="--", label="as sure as right")
    axes.bar(left, np.nan_to_num(accuracy), right - left, align="edge", color=COLORS[0], alpha=0.75, label="accuracy")
    gap = np.array(accuracy, float) - center
    axes.bar(
        left,
        np.nan_to_num(gap),
        right - left,
        bottom=np.nan_to_num(center),
        align="edge",
        fill=False,
        edgecolor=COLORS[1],
        lw=1,
        hatch="///",
        label="gap to the confidence",
    )
    axes.set(title="Reliability", ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
    below.bar(left, count, right - left, align="edge", color=_FAINT, edgecolor="w", lw=0.5)
    if max(count) > 0:
        below.set_yscale("log", nonpositive="clip")
        below.set_ylim(bottom=0.5)
        below.set_yticks([10**power for power in range(0, len(str(max(count))), 2)])
        below.minorticks_off()
    below.set(xlabel="confidence, the largest probability", ylabel="pixels")
    axes.legend(fontsize=8, loc="upper left")
    _quiet(axes)
    _quiet(below)
    return drawn


def precision_recall(lines: Mapping[str, Line], *, chance: float | int | None = None) -> Figure:
    """Precision over recall, a line a name; `chance`: the precision without skill, the share of positives."""
    drawn, axes = _plot("Precision and recall", "recall", "precision")
    for i, (name, (recall, precision)) in enumerate(lines.items()):
        style = _STYLES[i // len(COLORS) % len(_STYLES)]
        axes.plot(recall, precision, style, color=COLORS[i % len(COLORS)], lw=1.6, label=name)
    if chance is not None:
        axes.axhline(chance, color=_MARK, lw=1, ls="--", label=f"without skill ({chance:.2g})")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    if len(lines) > 4:
        drawn.set_size_inches(_SIZE[0] + 1.6, _SIZE[1])
        drawn.legend(fontsize=8, loc="outside right upper", handlelength=3.2)
    else:
        axes.legend(fontsize=8)
    return drawn


def risk_coverage(lines: Mapping[str, Line], *, errors: float | int) -> Figure:
    """The share of wrong pixels among the surest ones, a line an uncertainty; `errors` is the share of all pixels."""
    drawn, axes = _plot("Risk and coverage", "share of pixels answered, the surest first", "of these, wrong")
    for i, (name, (coverage, risk)) in enumerate(lines.items()):
        axes.plot(coverage, risk, color=COLORS[i % len(COLORS)], lw=1.8, label=name)
    axes.axhline(errors, color=_MARK, lw=1, ls="--", label="chosen blindly")
    # What a few pixels begin with may be anything; at full coverage all have the network's error.
    axes.set(xlim=(0, 1), ylim=(0, 1.5 * errors or 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(fontsize=8)
    return drawn


def _plot(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    drawn = Figure(figsize=_SIZE, layout="constrained", dpi=_DPI)
    axes = drawn.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    _quiet(axes)
    return drawn, axes


def _quiet(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.title.set_fontsize(11)
    axes.spines[["top", "right"]].set_visible(False)


def _running_mean(values: Sequence[float | int], window: int) -> np.ndarray:
    """Of `window` values, at its ends of those there are; NaNs are left out."""
    known = np.array(values, float)
    ones = np.convolve(~np.isnan(known), np.ones(window), "same")
    return np.convolve(np.nan_to_num(known), np.ones(window), "same") / np.maximum(ones, 1)
