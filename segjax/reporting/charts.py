"""Charts of curves as data: a page draws them as SVG with the values under the pointer, matplotlib as PNG."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from segjax.storage import printable

Numbers = Sequence[float | int]
Series = tuple[Numbers, Sequence[Sequence[float | int | None]]]  # x values, and one sequence of y values per seed
Range = tuple[float | int | None, float | int | None]

# A page has at most this many points per line: about one per pixel.
MOST_POINTS = 1000


class Chart(NamedTuple):
    """Curves with a caption: an SVG in a page, and the file REPORT_NAME.png.

    The line of each series is the mean over its seeds, with a band from the lowest to the highest seed. None and NaN
    leave a gap. Two charts with `half` stand side by side on a wide page.

    Attributes:
      name: end of the name of the PNG file.
      caption: sentence below the chart.
      lines: series by name.
      title: heading of the chart.
      x: name of the x axis.
      y: name of the y axis.
      x_range: limits of the x axis; a limit of None is that of the data.
      y_range: limits of the y axis; likewise.
      smoothed: draws the values faintly, and on top their running mean over a twentieth of the line.
      checkpoint_step: x of a dotted vertical line.
      reference: name and y of a dashed horizontal line.
      half: the chart is half as wide as the page.
      slider: x at which a slider below the chart starts; the page lists the values of all lines there. None: no slider.
    """

    name: str
    caption: str
    lines: Mapping[str, Series]
    title: str
    x: str
    y: str = ""
    x_range: Range = (None, None)
    y_range: Range = (None, None)
    smoothed: bool = False
    checkpoint_step: int | None = None
    reference: tuple[str, float | int] | None = None
    half: bool = True
    slider: float | None = None

    @property
    def form(self) -> str:
        """End of the file's name."""
        return "png"

    @property
    def content(self) -> bytes:
        """The PNG file, drawn by matplotlib, which is imported here because pages do not need it."""
        from segjax.reporting import figures

        options = {name: getattr(self, name) for name in ("title", "x", "y", "x_range", "y_range", "smoothed")}
        options |= {"checkpoint_step": self.checkpoint_step, "reference": self.reference}
        return figures.png(figures.curves(self.lines, **options))

    def data(self) -> dict[str, Any]:
        """Returns what page.js draws, ready for JSON: at most `MOST_POINTS` per line, with six digits."""
        return {
            "x": printable(self.x),
            "y": printable(self.y),
            "xRange": self.x_range,
            "yRange": self.y_range,
            "step": self.checkpoint_step,
            "reference": self.reference and (printable(self.reference[0]), self.reference[1]),
            "slider": self.slider,
            "lines": [
                {"name": printable(name), **_line(*series, smoothed=self.smoothed)}
                for name, series in self.lines.items()
            ],
        }


def _line(xs: Numbers, seeds: Sequence[Sequence[float | int | None]], *, smoothed: bool) -> dict[str, list]:
    """Returns the coordinates of the mean over seeds, with the band and the running mean if there are any."""
    if not len(seeds):
        return {"x": [], "y": []}
    values = np.ma.masked_invalid(np.array(seeds, float))
    mean = values.mean(0)
    columns = {"y": mean}
    if len(values) > 1:
        columns |= {"low": values.min(0), "high": values.max(0)}
    if smoothed and (window := smoothing_window(len(mean))) > 1:
        columns["smooth"] = np.ma.masked_invalid(running_mean(mean, window))
    kept = extremes(np.ma.filled(mean, math.nan), MOST_POINTS)
    line = {name: [_rounded(value) for value in np.ma.filled(ys, math.nan)[kept]] for name, ys in columns.items()}
    return {"x": [_rounded(value) for value in np.asarray(xs)[kept].tolist()]} | line


def _rounded(value: float | int) -> float | int | None:
    return None if not math.isfinite(value) else int(value) if value == int(value) else float(f"{value:.6g}")


def smoothing_window(points: int) -> int:
    """Returns the number of values that a running mean of a line averages."""
    return max(1, points // 20)


def running_mean(values: np.ma.MaskedArray, window: int) -> Float[np.ndarray, "points"]:
    """Averages over `window` neighbours, fewer at both ends; masked values are left out."""
    counts = np.convolve(~np.ma.getmaskarray(values), np.ones(window), "same")
    return np.convolve(values.filled(0), np.ones(window), "same") / np.maximum(counts, 1)


def extremes(values: Float[np.ndarray, "points"], most: int) -> np.ndarray:
    """Returns at most `most` rising indices of a line, among them the lowest and the highest value of each stretch.

    >>> extremes(np.array([0.0, 5.0, 1.0, 0.0, 9.0, 2.0, 3.0, 1.0]), 4)
    array([0, 1, 4, 7])
    """
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), most // 2 + 1).astype(int)
    low, high = np.where(np.isnan(values), math.inf, values), np.where(np.isnan(values), -math.inf, values)
    found = [(a + low[a:b].argmin(), a + high[a:b].argmax()) for a, b in itertools.pairwise(edges)]
    return np.unique(found)
