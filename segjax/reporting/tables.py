"""One way to print a table: on a terminal, as Markdown, as CSV."""

import csv
import io
import math
from typing import Any, NamedTuple

import rich.box
import rich.console
import rich.table


class Table(NamedTuple):
    """A title, column names and rows of numbers and text; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def cell(value: Any) -> str:
    """How a value reads in a table: floats with three decimals, a missing or undefined one as a dash.

    >>> cell(0.43812), cell(float("nan")), cell(None), cell(918), cell("pole")
    ('0.438', '–', '–', '918', 'pole')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def show(table: Table, console: rich.console.Console) -> None:
    """Prints `table` on a terminal."""
    drawn = rich.table.Table(title=table.title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    for i, name in enumerate(table.columns):
        drawn.add_column(name, justify="right" if i else "left")
    for row in table.rows:
        drawn.add_row(*map(cell, row))
    console.print(drawn)


def markdown(table: Table) -> str:
    r"""The table as GitHub Markdown, without its title.

    >>> print(markdown(Table("scores", ("class", "IoU"), [("a|b", 0.5)])))
    | class | IoU |
    | :-- | --: |
    | a\|b | 0.500 |
    """
    lines = [table.columns, (":--",) + ("--:",) * (len(table.columns) - 1), *table.rows]
    return "\n".join("| " + " | ".join(cell(v).replace("|", "\\|") for v in line) + " |" for line in lines)


def to_csv(table: Table) -> str:
    """The table as CSV with full precision.

    >>> print(to_csv(Table("scores", ("class", "IoU"), [("road, wet", 0.5)])), end="")
    class,IoU
    "road, wet",0.5
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return text.getvalue()


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
