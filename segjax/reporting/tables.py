"""One way to print a table: on a terminal, as Markdown, CSV, LaTeX and HTML."""

import csv
import io
import math
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import rich.box
import rich.console
import rich.measure
import rich.table
import rich.text


class Spread(NamedTuple):
    """What several seeds measured: printed as mean ± sample standard deviation.

    Attributes:
      values: the measured values, NaN and None left out (`spread` does it).
      missing: how many seeds gave none.
      diverged: how many of these have none to give.
    """

    values: tuple[float, ...]
    missing: int = 0
    diverged: int = 0

    @property
    def mean(self) -> float:
        """Their mean; NaN without any."""
        return statistics.mean(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """Their sample standard deviation (n - 1); NaN with fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan


def spread(values: list[float | None], diverged: int = 0) -> Spread:
    """A `Spread` of what is a number; NaN and None are missing, and so are `diverged` more.

    >>> cell(spread([0.5, 0.75])), cell(spread([0.5])), cell(spread([0.5, None])), cell(spread([None]))
    ('0.625 ± 0.177', '0.500', '0.500 (1 of 2)', '–')
    >>> cell(spread([0.5, 0.75], 1)), cell(spread([], 2))
    ('0.625 ± 0.177 (2 of 3, 1 diverged)', '2 diverged')
    """
    known = tuple(float(value) for value in values if value is not None and not math.isnan(value))
    return Spread(known, len(values) - len(known) + diverged, diverged)


class Table(NamedTuple):
    """A title, column names and rows of numbers, values of `Spread`, and text; the first column names the row.

    Attributes:
      title: above the table.
      columns: the names.
      rows: as many values each.
      highest: columns whose highest value is set in bold.
      lowest: columns whose lowest is.
      text: columns of words, flush left as the first is.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    highest: tuple[str, ...] = ()
    lowest: tuple[str, ...] = ()
    text: tuple[str, ...] = ()


def cell(value: Any) -> str:
    """How a value reads in a table: floats with three decimals, a missing or undefined one as a dash.

    >>> cell(0.43812), cell(float("nan")), cell(None), cell(918), cell("pole")
    ('0.438', '–', '–', '918', 'pole')
    """
    if isinstance(value, Spread):
        lost = f"{value.diverged} diverged" if value.diverged else ""
        if not value.values and lost:
            return lost
        counted = f"{len(value.values)} of {len(value.values) + value.missing}"
        of = f" ({', '.join(filter(None, [counted, lost]))})" if value.missing and value.values else ""
        deviation = "" if math.isnan(value.std) else f" ± {value.std:.3f}"
        return f"{cell(value.mean)}{deviation}{of}"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def printed(table: Table) -> list[list[tuple[str, bool]]]:
    """The rows as text, and whether each is the best of its column, to the decimals that are shown."""
    columns = []
    for name, values in zip(table.columns, zip(*table.rows, strict=True), strict=False):
        numbers = [_number(value) for value in values]
        known = [number for number in numbers if number is not None]
        best = None
        if known and name in table.highest + table.lowest:
            best = cell(max(known) if name in table.highest else min(known))
        pairs = zip(values, numbers, strict=True)
        columns.append([(cell(value), number is not None and cell(number) == best) for value, number in pairs])
    return [list(row) for row in zip(*columns, strict=True)]


def _flush_left(table: Table) -> list[bool]:
    return [i == 0 or name in table.text for i, name in enumerate(table.columns)]


def _number(value: Any) -> float | int | None:
    number = value.mean if isinstance(value, Spread) else value
    return None if not isinstance(number, float | int) or math.isnan(number) else number


def show(table: Table, console: rich.console.Console) -> None:
    """Prints `table` on a terminal.

    Where that is too narrow, the names of columns broken between words too, the table lies on its side: a line a
    column, and beside one another as many rows as there is room for.
    """
    rows, names = printed(table), [(name, False) for name in table.columns]
    upright = _drawn(table.title, [names, *rows])
    narrow = _drawn(table.title, [names, *rows], broken=True)
    for column in narrow.columns:  # the room that is left goes to the names, from the left
        while column.width < len(column.header) and _width(narrow, console) < console.width:
            column.width += 1
    if not rows or _width(upright, console) <= console.width:
        console.print(upright)
        return
    if _width(narrow, console) <= console.width:
        console.print(narrow)
        return
    console.print(rich.text.Text(table.title, "table.title"))  # which may be wider than the table
    while rows:
        for count in range(len(rows), 0, -1):
            drawn = _drawn(None, list(zip(names, *rows[:count], strict=True)))
            if _width(drawn, console) <= console.width:
                break
        console.print(drawn)
        rows = rows[count:]


def _drawn(title: str | None, lines: Sequence[Sequence[tuple[str, bool]]], *, broken: bool = False) -> rich.table.Table:
    """The first line is the head, `broken` between words; the texts to which True belongs are bold."""
    drawn = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    head, *body = ([rich.text.Text(text, "bold" if best else "") for text, best in line] for line in lines)
    for i, name in enumerate(head):
        longest = max(map(len, [*name.plain.split(), *(line[i] for line in body)]), default=0) if broken else None
        drawn.add_column(name, justify="right" if i else "left", width=longest)
    for line in body:
        drawn.add_row(*line)
    return drawn


def _width(drawn: rich.table.Table, console: rich.console.Console) -> int:
    """Of the whole table where nothing limits it."""
    return rich.measure.Measurement.get(console, console.options.update(max_width=sys.maxsize), drawn).maximum


def markdown(table: Table) -> str:
    r"""The table as GitHub Markdown, without its title.

    >>> print(markdown(Table("scores", ("class", "IoU"), [("a|b", 0.5), ("c", 0.25)], highest=("IoU",))))
    | class | IoU |
    | :-- | --: |
    | a\|b | **0.500** |
    | c | 0.250 |
    """

    def row(values: list[str]) -> str:
        return f"| {' | '.join(values)} |"

    def escaped(text: str) -> str:
        return "".join(_MARKDOWN.get(character, character) for character in text)

    rule = [":--" if left else "--:" for left in _flush_left(table)]
    body = [[f"**{escaped(text)}**" if best else escaped(text) for text, best in line] for line in printed(table)]
    return "\n".join(map(row, [list(map(escaped, table.columns)), rule, *body]))


def to_csv(table: Table) -> str:
    """The table as CSV with full precision; a column of values of `Spread` becomes two, its mean and its deviation.

    What a `Spread` does not know is left empty.

    >>> print(to_csv(Table("scores", ("class", "IoU"), [("road, wet", Spread((0.25, 0.75)))])), end="")
    class,IoU,IoU std
    "road, wet",0.5,0.3535533905932738
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    two = [any(isinstance(row[i], Spread) for row in table.rows) for i in range(len(table.columns))]
    names = zip(table.columns, two, strict=True)
    writer.writerow([name for column, is_two in names for name in ([column, f"{column} std"] if is_two else [column])])
    for row in table.rows:
        values: list[Any] = []
        for value, is_two in zip(row, two, strict=True):
            if isinstance(value, Spread):
                values += [None if math.isnan(one) else one for one in (value.mean, value.std)]
            else:
                values += [value, None] if is_two else [value]
        writer.writerow(values)
    return text.getvalue()


_MARKDOWN = {"\\": "\\\\", "|": "\\|", "*": "\\*", "<": "&lt;"}
_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "–": "--",
    "½": r"$\frac12$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "π": r"$\pi$",
}


def latex(table: Table) -> str:
    r"""The table in LaTeX, for the booktabs package, with its title as the caption.

    >>> print(latex(Table("AP by γ", ("γ", "AP"), [("2", 0.5)], highest=("AP",))))
    \begin{table}
      \caption{AP by $\gamma$}
      \begin{tabular}{lr}
        \toprule
        $\gamma$ & AP \\
        \midrule
        2 & \textbf{0.500} \\
        \bottomrule
      \end{tabular}
    \end{table}
    """

    def escape(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in text)

    body = [
        " & ".join(f"\\textbf{{{escape(text)}}}" if best else escape(text) for text, best in line)
        for line in printed(table)
    ]
    lines = [
        "\\begin{table}",
        f"  \\caption{{{escape(table.title)}}}",
        f"  \\begin{{tabular}}{{{''.join('l' if left else 'r' for left in _flush_left(table))}}}",
        "    \\toprule",
        f"    {' & '.join(map(escape, table.columns))} \\\\",
        "    \\midrule",
        # Or a line that begins with a bracket would be the optional argument of the \\ before it.
        *(f"    {'{}' * line.startswith('[')}{line} \\\\" for line in body),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines)


def per_class_table(scores: dict[str, Any], title: str) -> Table:
    """IoU, Dice, precision and recall of each class, and their means, from an evaluation's dictionary."""
    columns = ("iou", "dice", "precision", "recall")
    pixels = [sum(row) for row in scores["confusion"]]
    rows = [
        (name, pixels[i] / max(sum(pixels), 1), *(scores[f"{c}_per_class"][i] for c in columns))
        for i, name in enumerate(scores["classes"])
    ]
    mean = ("mean", None, scores["mean_iou"], scores["mean_dice"], None, scores["mean_accuracy"])
    return Table(title, ("class", "share", "IoU", "Dice", "precision", "recall"), [*rows, mean])


def summary_line(scores: dict[str, Any]) -> str:
    """The few numbers a run is judged by, in one line."""
    keys = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "average_precision", "auroc")
    return "  ".join(f"{key} {cell(scores[key])}" for key in keys if key in scores)
