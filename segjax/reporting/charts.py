"""Charts and grids as data: a page draws them with the values under the pointer, matplotlib as PNG."""

import base64
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
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
      x_range: limits of the x axis; None: the limit of the data.
      y_range: limits of the y axis; None: the limit of the data.
      smoothed: draws the values faintly, and over them their running mean over a twentieth of the line.
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
        """File extension."""
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


class ConfusionMatrix(NamedTuple):
    """A confusion matrix whose rows (true classes) sum to 100 %: an SVG in a page, and the file REPORT_NAME.png.

    Attributes:
      name: end of the name of the PNG file.
      caption: sentence below the matrix.
      classes: names of the classes.
      counts: pixels per true class (row) and predicted class (column).
      half: the matrix is half as wide as the page.
    """

    name: str
    caption: str
    classes: Sequence[str]
    counts: Sequence[Sequence[int]]
    half: bool = True

    title = "Confusion matrix"
    form = "png"  # file extension

    @property
    def content(self) -> bytes:
        """The PNG file, drawn by matplotlib, which is imported here because pages do not need it."""
        from segjax.reporting import figures

        return figures.png(figures.confusion_figure(self.counts, self.classes))

    def data(self) -> dict[str, Any]:
        """Returns what diagrams.js draws, ready for JSON."""
        return {"classes": [printable(name) for name in self.classes], "counts": [list(row) for row in self.counts]}


class ReliabilityDiagram(NamedTuple):
    """Accuracy and number of pixels per confidence bin: an SVG in a page, and the file REPORT_NAME.png.

    Attributes:
      name: end of the name of the PNG file.
      caption: sentence below the diagram.
      edges: edges of the bins, one more than bins.
      confidence: mean confidence per bin; NaN for an empty one.
      accuracy: share of correct pixels per bin; NaN for an empty one.
      count: pixels per bin.
      half: the diagram is half as wide as the page.
    """

    name: str
    caption: str
    edges: Numbers
    confidence: Numbers
    accuracy: Numbers
    count: Sequence[int]
    half: bool = True

    title = "Reliability"
    form = "png"  # file extension

    @property
    def content(self) -> bytes:
        """The PNG file, drawn by matplotlib, which is imported here because pages do not need it."""
        from segjax.reporting import figures

        bins = (self.edges, self.confidence, self.accuracy, self.count)
        return figures.png(figures.reliability_figure(*bins))

    def data(self) -> dict[str, Any]:
        """Returns what diagrams.js draws, ready for JSON; an empty bin has None."""
        bins = {key: [_rounded(value) for value in getattr(self, key)] for key in ("edges", "confidence", "accuracy")}
        return bins | {"count": list(self.count)}


class GridCell(NamedTuple):
    """The runs of one cell of a `Grid`, one per seed.

    Attributes:
      scores: by name of the score, one value per seed; None for a seed without a value.
      curves: learning curves by name of the score: the steps, and the values at these steps, one row per seed that has
        a curve.
      notes: one remark per seed, such as "diverged at step 20"; "" for a finished run.
      pictures: PNG or JPEG files by caption.
    """

    scores: Mapping[str, Sequence[float | None]]
    curves: Mapping[str, Series] = {}
    notes: Sequence[str] = ()
    pictures: Mapping[str, bytes] = {}

    def mean(self, score: str) -> float:
        """Returns the mean of a score over the seeds that have a value; NaN if none has."""
        known = _known(self.scores[score])
        return statistics.mean(known) if known else math.nan

    def std(self, score: str) -> float:
        """Returns the sample standard deviation of a score over the seeds; NaN with fewer than two values."""
        known = _known(self.scores[score])
        return statistics.stdev(known) if len(known) > 1 else math.nan


class Grid(NamedTuple):
    """Scores of a sweep over two fields: an interactive table in a page, and a heat map, the file REPORT_NAME.png.

    In the page a cell shows its scores per seed, its curves and its pictures, and two cells can be compared. The
    highest mean of each row is framed, and the highest of all has a star.

    Attributes:
      name: end of the name of the PNG file.
      caption: sentence below the grid.
      x: name of the field that changes along a row.
      y: name of the field that changes along a column.
      columns: values of `x`.
      rows: values of `y`.
      seeds: names of the seeds.
      cells: cells by (row, column), both counted from 0; a cell that is missing was not run.
      scores: names of the scores; the page starts with the first one, and the PNG shows only the first one.
      curve_x: name of the x axis of the curves.
    """

    name: str
    caption: str
    x: str
    y: str
    columns: Sequence[str]
    rows: Sequence[str]
    seeds: Sequence[str]
    cells: Mapping[tuple[int, int], GridCell]
    scores: Sequence[str]
    curve_x: str = "step"

    half = False

    @property
    def form(self) -> str:
        """File extension."""
        return "png"

    @property
    def title(self) -> str:
        """Heading of the heat map."""
        count = max((len(_known(cell.scores[self.scores[0]])) for cell in self.cells.values()), default=0)
        return f"{self.scores[0]}, mean ± std of {count} seed(s)"

    @property
    def content(self) -> bytes:
        """The PNG file, drawn by matplotlib, which is imported here because pages do not need it."""
        from segjax.reporting import figures

        def values(of: Callable[[GridCell, str], float]) -> list[list[float]]:
            value = {at: of(cell, self.scores[0]) for at, cell in self.cells.items()}
            return [[value.get((i, j), math.nan) for j in range(len(self.columns))] for i in range(len(self.rows))]

        names = {"rows": self.rows, "columns": self.columns, "title": self.title, "x": self.x, "y": self.y}
        return figures.png(figures.heatmap(values(GridCell.mean), values(GridCell.std), **names))

    def data(self) -> dict[str, Any]:
        """Returns what grid.js shows, ready for JSON: numbers with six digits, and pictures as data URLs."""
        labels = ("columns", "rows", "seeds", "scores")
        return {key: [printable(name) for name in getattr(self, key)] for key in labels} | {
            "x": printable(self.x),
            "y": printable(self.y),
            "curveX": printable(self.curve_x),
            "cells": [self._cell_data(*at, cell) for at, cell in sorted(self.cells.items())],
        }

    def _cell_data(self, row: int, column: int, cell: GridCell) -> dict[str, Any]:
        values = [[None if value is None else _rounded(value) for value in cell.scores[name]] for name in self.scores]
        lines = [_line(*cell.curves[name], smoothed=False) if name in cell.curves else None for name in self.scores]
        return {
            "row": row,
            "column": column,
            "values": values,
            "mean": [_rounded(cell.mean(name)) for name in self.scores],
            "std": [_rounded(cell.std(name)) for name in self.scores],
            "lines": lines,
            "notes": [printable(note) for note in cell.notes],
            "pictures": [[printable(caption), data_url(file)] for caption, file in cell.pictures.items()],
        }


def image_form(file: bytes) -> str:
    """Returns "jpeg" or "png", the file extension and the media subtype of an image file."""
    return "jpeg" if file.startswith(b"\xff\xd8") else "png"


def data_url(file: bytes) -> str:
    """Returns a PNG or JPEG file as a data URL."""
    return f"data:image/{image_form(file)};base64,{base64.b64encode(file).decode()}"


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and not math.isnan(value)]


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
