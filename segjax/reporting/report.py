"""Reports of tables and pictures: on a terminal, and as HTML, Markdown, CSV, LaTeX, JSON and PNG files."""

import csv
import io
import itertools
import json
import math
import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.box
import rich.console
import rich.measure
import rich.table
import rich.text
from etils import epath
from jinja2 import StrictUndefined, Template
from markupsafe import Markup

from segjax.reporting.charts import Chart, ConfusionMatrix, Grid, ReliabilityDiagram, data_url, image_form
from segjax.storage import check_outputs, named_like, printable, to_json, write_outputs


class Spread(NamedTuple):
    """Measurements of several seeds, printed as mean ± sample standard deviation.

    `missing` seeds have no value; of these, `diverged` diverged in training.
    """

    values: tuple[float, ...]
    missing: int = 0
    diverged: int = 0

    @property
    def mean(self) -> float:
        """Mean of the values; NaN without values."""
        return statistics.mean(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation of the values (n - 1); NaN with fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan


def spread(values: list[float | None], diverged: int = 0) -> Spread:
    """Returns the `Spread` of `values`; NaN and None count as missing, and so do `diverged` further seeds.

    >>> cell(spread([0.5, 0.75], 1)), cell(spread([], 2))
    ('0.625 ± 0.177 (2 of 3, 1 diverged)', '2 diverged')
    """
    known = tuple(float(value) for value in values if value is not None and not math.isnan(value))
    return Spread(known, len(values) - len(known) + diverged, diverged)


class Table(NamedTuple):
    """Rows of numbers, `Spread` values and text; the first column names the row.

    `highest` and `lowest` name the columns whose best value is printed in bold. The `text` columns are aligned left.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    highest: tuple[str, ...] = ()
    lowest: tuple[str, ...] = ()
    text: tuple[str, ...] = ()


class Picture(NamedTuple):
    """A PNG or JPEG file with a caption; its file is named REPORT_NAME.png or REPORT_NAME.jpeg.

    Two pictures with `half` stand side by side on a wide page.
    """

    name: str
    caption: str
    content: bytes
    half: bool = False

    @property
    def form(self) -> str:
        """Returns "jpeg" or "png", the end of the file's name and of its media type."""
        return image_form(self.content)


class Overlay(NamedTuple):
    """An image under layers, of which the page shows one, as opaque as its reader chooses.

    Attributes:
      name: end of the name of the file of `content`.
      caption: sentence below the image.
      content: PNG or JPEG file of all layers side by side, for Markdown.
      image: PNG or JPEG file below the layers.
      layers: files of the layers by name; the first is shown at first. The layer of classes that overlap has a file
        per class, and one of all classes under "".
      legends: CSS colours by name, per layer.
      values: data of `segjax.reporting.overlays` from which the page finds the values of a pixel, ready for JSON.
      half: the image is half as wide as the page.
    """

    name: str
    caption: str
    content: bytes
    image: bytes
    layers: Mapping[str, bytes | Mapping[str, bytes]]
    legends: Mapping[str, Mapping[str, str]]
    values: Mapping[str, Any]
    half: bool = True

    @property
    def form(self) -> str:
        """Returns "jpeg" or "png", the end of the file's name and of its media type."""
        return image_form(self.content)


class Section(NamedTuple):
    """A heading with a few sentences, tables, and pictures, charts, grids or overlays."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture | Chart | ConfusionMatrix | ReliabilityDiagram | Grid | Overlay, ...] = ()


class Progress(NamedTuple):
    """Progress of a run for its page.

    The page reloads itself every `refresh` seconds, and shows its age if that is many times as long. `written` is the
    time of writing in seconds since 1970. `refresh` is None after the end of the run.
    """

    text: str
    step: int
    steps: int
    refresh: int | None
    written: float


class Report(NamedTuple):
    """A question, the measurements that answer it, and their provenance.

    `text` has the question and the method in a few sentences. `facts` has the provenance by name, such as command,
    commit and versions; its values may be mappings. `progress` is None unless the report is the live page of a run.
    """

    title: str
    text: str
    sections: tuple[Section, ...]
    facts: Mapping[str, Any]
    progress: Progress | None = None


def cell(value: Any) -> str:
    """Formats a value: floats with three decimals, None and NaN as a dash.

    >>> cell(0.43812), cell(float("nan")), cell(None), cell(918), cell("pole")
    ('0.438', '–', '–', '918', 'pole')
    """
    if isinstance(value, Spread):
        known, diverged = len(value.values), f"{value.diverged} diverged" if value.diverged else ""
        if not known:
            return diverged or "–"
        deviation = f" ± {value.std:.3f}" if known > 1 else ""
        note = ", ".join(filter(None, [f"{known} of {known + value.missing}", diverged]))
        return f"{value.mean:.3f}{deviation}" + (f" ({note})" if value.missing else "")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else printable(str(value))


def format_rows(table: Table) -> list[list[tuple[str, bool]]]:
    """Returns (text, is_best) of each cell; cells that print as the best number of a column are all best."""
    columns = []
    for name, values in zip(table.columns, zip(*table.rows, strict=True), strict=False):
        numbers = [_number(value) for value in values]
        defined = [number for number in numbers if number is not None]
        best = None
        if defined and name in table.highest + table.lowest:
            best = cell(max(defined) if name in table.highest else min(defined))
        columns.append([(cell(v), cell(number) == best) for v, number in zip(values, numbers, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def _aligned_left(table: Table) -> list[bool]:
    return [i == 0 or name in table.text for i, name in enumerate(table.columns)]


def _marked(table: Table, escape: Callable[[str], str], bold: str) -> list[list[str]]:
    """Returns the cells of each row, escaped, with `bold`, a format, applied to the best."""
    rows = [[(escape(text), best) for text, best in row] for row in format_rows(table)]
    return [[bold.format(text) if best else text for text, best in row] for row in rows]


def _number(value: Any) -> float | int | None:
    number = value.mean if isinstance(value, Spread) else value
    return None if not isinstance(number, float | int) or math.isnan(number) else number


def show(table: Table, console: rich.console.Console) -> None:
    """Prints a table on a terminal; on a narrow one, column names wrap, or the table is transposed in several parts."""
    rows, names = format_rows(table), [(printable(name), False) for name in table.columns]
    wrapped = _rich_table(table.title, [names, *rows], wrap_names=True)
    for column in wrapped.columns:  # spare room goes to the names, from the left
        while column.width < len(column.header) and _width(wrapped, console) < console.width:
            column.width += 1
    for whole in (_rich_table(table.title, [names, *rows]), wrapped):
        if not rows or _width(whole, console) <= console.width:
            console.print(whole)
            return
    console.print(rich.text.Text(printable(table.title), "table.title"))  # it may be wider than the table
    while rows:
        for count in range(len(rows), 0, -1):
            transposed = _rich_table(None, list(zip(names, *rows[:count], strict=True)))
            if _width(transposed, console) <= console.width:
                break
        console.print(transposed)
        rows = rows[count:]


def _rich_table(
    title: str | None, lines: Sequence[Sequence[tuple[str, bool]]], *, wrap_names: bool = False
) -> rich.table.Table:
    """Builds rich's table from lines of (text, is_bold), of which the first is the head."""
    shown = None if title is None else rich.text.Text(printable(title))  # a str would be read as markup
    table = rich.table.Table(title=shown, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    head, *body = ([rich.text.Text(text, "bold" if best else "") for text, best in line] for line in lines)
    for i, name in enumerate(head):
        width = max(map(len, [*name.plain.split(), *(line[i] for line in body)]), default=0) if wrap_names else None
        table.add_column(name, justify="right" if i else "left", width=width)
    for line in body:
        table.add_row(*line)
    return table


def _width(table: rich.table.Table, console: rich.console.Console) -> int:
    """Returns the width that a table takes where nothing limits it."""
    return rich.measure.Measurement.get(console, console.options.update(max_width=sys.maxsize), table).maximum


def markdown(table: Table) -> str:
    r"""Returns the table as GitHub Markdown, without its title.

    >>> print(markdown(Table("scores", ("class", "IoU"), [("a|b", 0.5), ("c", 0.25)], highest=("IoU",))))
    | class | IoU |
    | :-- | --: |
    | a\|b | **0.500** |
    | c | 0.250 |
    """
    names = [_markdown(name) for name in table.columns]
    rule = [":--" if left else "--:" for left in _aligned_left(table)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [names, rule, *_marked(table, _markdown, "**{}**")])


def to_csv(table: Table) -> str:
    """Returns the table as CSV in full precision; a `Spread` fills two columns, mean and std, empty where NaN.

    Texts stay as they are, also those that a spreadsheet would read as a formula, because the file is data.

    >>> print(to_csv(Table("scores", ("class", "IoU"), [("road, wet", Spread((0.25, 0.75)))])), end="")
    class,IoU,IoU std
    "road, wet",0.5,0.3535533905932738
    """
    has_std = [any(isinstance(row[i], Spread) for row in table.rows) for i in range(len(table.columns))]
    head = [(printable(name), printable(f"{name} std")) for name in table.columns]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for pairs in [head, *([_mean_and_std(value) for value in row] for row in table.rows)]:
        writer.writerow([cell for pair, two in zip(pairs, has_std, strict=True) for cell in pair[: 1 + two]])
    return text.getvalue()


def _mean_and_std(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, Spread):
        return printable(value) if isinstance(value, str) else value, None
    return tuple(None if math.isnan(number) else number for number in (value.mean, value.std))


def _markdown(text: str) -> str:
    r"""Escapes a text within a line of GitHub Markdown; an underscore within a word has no meaning there.

    >>> print(_markdown("a|b *c* $x_1$ _d_ <b>"))
    a\|b \*c\* \$x_1\$ \_d\_ &lt;b>
    """
    text = re.sub(r"[\\|*`\[\]$~#]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", printable(text))
    return re.sub("&(?=[#\\w])", "&amp;", text).replace("<", "&lt;")


def _markdown_paragraphs(text: str) -> str:
    """Escapes paragraphs; their first characters must not begin a list, a quotation or a heading."""
    return "\n\n".join(re.sub(r"^(\d*)([-+=>.)])", r"\1\\\2", _markdown(one)) for one in _paragraphs(text))


def _paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def _latex(text: str) -> str:
    return printable(text).translate(_LATEX)


_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "–": "--"}
    | {"<": "$<$", ">": "$>$", "×": r"$\times$", "±": r"$\pm$", "½": r"$\frac12$", "≥": r"$\ge$", "≤": r"$\le$"}
    | {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "π": r"$\pi$"}
)


def latex(table: Table) -> str:
    r"""Returns the table as LaTeX for the booktabs package, with its title as the caption.

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
    body = [" & ".join(row) for row in _marked(table, _latex, r"\textbf{{{}}}")]
    lines = [
        "\\begin{table}",
        f"  \\caption{{{_latex(table.title)}}}",
        f"  \\begin{{tabular}}{{{''.join('l' if left else 'r' for left in _aligned_left(table))}}}",
        "    \\toprule",
        f"    {' & '.join(_latex(name) for name in table.columns)} \\\\",
        "    \\midrule",
        # {}: LaTeX would read a leading bracket as the optional argument of the \\ before it.
        *(f"    {'{}' * line.startswith('[')}{line} \\\\" for line in body),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines)


def per_class_table(scores: dict[str, Any], title: str) -> Table:
    """Builds the table of IoU, Dice, precision and recall per class, and their means, from evaluation scores."""
    columns = ("iou", "dice", "precision", "recall")
    pixels = [sum(row) for row in scores["confusion"]]
    rows = [
        (name, pixels[i] / max(sum(pixels), 1), *(scores[f"{c}_per_class"][i] for c in columns))
        for i, name in enumerate(scores["classes"])
    ]
    mean = ("mean", None, scores["mean_iou"], scores["mean_dice"], None, scores["mean_accuracy"])
    return Table(title, ("class", "share", "IoU", "Dice", "precision", "recall"), [*rows, mean])


def detection_table(scores: dict[str, Any], title: str) -> Table:
    """Builds the table of COCO's average precision and recall per class, and their means, from a detector's scores."""
    columns = zip(*(scores[f"{name}_per_class"] for name in ("ap", "ap50", "ar100")), strict=True)
    rows = [(name, count, *row) for name, count, row in zip(scores["classes"], scores["objects"], columns, strict=True)]
    mean = ("mean", sum(scores["objects"]), *(scores[name] for name in ("ap", "ap50", "ar100")))
    return Table(title, ("class", "objects", "AP", "AP50", "AR100"), [*rows, mean])


def multilabel_table(scores: dict[str, Any], title: str) -> Table:
    """Builds the table of the scores per class, and their means, from evaluation scores of classes that overlap."""
    columns = ("iou", "dice", "precision", "recall", "average_precision")
    rows = []
    for i, (name, matrix) in enumerate(zip(scores["classes"], scores["confusion"], strict=True)):
        share = sum(matrix[1]) / max(1, sum(map(sum, matrix)))
        rows.append((name, share, *(scores[f"{column}_per_class"][i] for column in columns)))
    mean = ("mean", None, *(scores[f"mean_{column}"] for column in columns))
    return Table(title, ("class", "share", "IoU", "Dice", "precision", "recall", "AP"), [*rows, mean])


def unknown_table(scores: dict[str, Any]) -> Table:
    """Builds the table of the detection of unseen classes per score of a pixel, from evaluation scores."""
    unknown, keys = scores["unknown"], ("average_precision", "auroc", "fpr_at_95_tpr")
    rows = [(name, *map(found.get, keys)) for name, found in unknown.items() if isinstance(found, dict)]
    title = f"Detection of unseen classes, {unknown['share']:.2%} of the labelled pixels"
    return Table(title, ("score", "AP ↑", "AUROC ↑", "FPR95 ↓"), rows, ("AP ↑", "AUROC ↑"), ("FPR95 ↓",))


def score_tables(scores: dict[str, Any], title: str) -> list[Table]:
    """Returns the tables that a command prints: `per_class_table`, and with unseen classes `unknown_table`.

    For a detector it is `detection_table`, and for classes that overlap `multilabel_table`.
    """
    if "exact_match" in scores:
        return [multilabel_table(scores, f"{title}: classes that overlap")]
    if "ap" in scores:
        return [detection_table(scores, f"{title}: AP of boxes")]
    return [per_class_table(scores, title), *([unknown_table(scores)] if "unknown" in scores else [])]


def calibration_tables(calibration: Mapping[str, Any]) -> list[Table]:
    """Builds the tables of a stored calibration: scores before and after scaling, and guarantees."""
    tables = []
    if scaling := calibration["scaling"]:
        factor = f"temperature {1 / scaling['scale'][0]:.3g}" if scaling["kind"] == "temperature" else scaling["kind"]
        rows = [
            (name.replace("_", " "), *(f"{scaling[when][name]:.4f}" for when in ("before", "after")))
            for name in scaling["before"]
        ]
        tables.append(Table(f"Scaling on {scaling['split']}: {factor}", ("", "before", "after"), rows))
    guarantees = sorted(calibration["guarantees"], key=lambda one: (one["class"], one["level"]))
    masks = [
        (
            one["class"],
            f"{one['level']:g}",
            f"{one['smallest_level']:.4g}",
            f"p ≥ {_probability(one['threshold'])}" if "threshold" in one else f"dilated by {one['radius']:g} pixels",
            *(f"{one[key]:.4g}" for key in ("miss_rate", "false_positive_rate")),
            f"{one['images_with_class']} of {one['split']}",
        )
        for one in guarantees
        if one["risk"] == "fnr"
    ]
    sets = [
        (
            own["class"] or "all",
            f"{one['level']:g}",
            f"{one['smallest_level']:.4g}",
            _set_rule(one["family"], own),
            f"{own['coverage']:.4f}",
            f"{own['mean_size']:.3f}",
            f"{own['images']} of {one['split']}",
        )
        for one in guarantees
        if one["risk"] == "miscoverage"
        for own in (one, *one["classes"])
        if own["images"]
    ]
    columns = ("class", "level", "smallest level", "uncalibrated p", "miss rate", "false positive rate", "images")
    if masks:
        tables.append(Table("Masks: bound of a class's expected miss rate", columns, masks, text=columns[3:4]))
    if sets:
        columns = (*columns[:4], "covered", "classes per set", columns[-1])
        title = "Sets of classes: bound of the expected fraction of pixels whose set lacks their class"
        tables.append(Table(title, columns, sets, text=columns[3:4]))
    return tables


def _set_rule(family: str, row: Mapping[str, Any]) -> str:
    """Returns the rule by which a class belongs to a set: in the row of all classes, or in those of single ones."""
    if row["class"]:
        return f"p ≥ {_probability(row['threshold'])}" if family == "class" else ""
    threshold = row["classes"][0]["threshold"]
    rules = {"threshold": f"p ≥ {_probability(threshold)}", "adaptive": f"likelier ones ≤ {_probability(-threshold)}"}
    return rules.get(family, "")


def _probability(log_odds: float) -> str:
    return f"{1 / (1 + math.exp(-log_odds)):.4g}"


def summary_line(scores: dict[str, Any]) -> str:
    """Returns the main scores of a run in one line, with the name of the rare class after those of it alone."""
    keys = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "average_precision", "auroc")
    keys += ("mean_average_precision", "exact_match")  # of classes that overlap
    keys += ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")  # of a detector
    rare = f" ({scores['rare_class']})" if "rare_class" in scores else ""
    own = dict.fromkeys(("average_precision", "auroc"), rare)
    return "  ".join(f"{key} {cell(scores[key])}{own.get(key, '')}" for key in keys if key in scores)


def check_report(folder: str | os.PathLike, name: str, *, overwrite: bool = False) -> None:
    """Raises ForeignFileError, before the work, for a file that `write_report` may have to replace and must not."""
    folder = epath.Path(folder)
    fixed = [folder / f"{name}.{suffix}" for suffix in ("html", "md", "tex", "json", "csv")]
    more = [file for suffix in ("csv", "png", "jpeg") for file in named_like(folder, f"{name}_*.{suffix}")]
    check_outputs([*fixed, *more], overwrite=overwrite)


def write_report(
    report: Report, folder: str | os.PathLike, name: str, data: Any = None, *, overwrite: bool = False
) -> list[epath.Path]:
    """Writes a report as NAME.html, NAME.md, NAME.tex, NAME.json, one CSV per table and one file per picture.

    NAME.json contains the facts of the report and `data`. Returns the paths, NAME.html first. A file that segjax did
    not write, or that was changed since, is replaced only with `overwrite`; else it raises ForeignFileError and writes
    nothing. If a file cannot be written, the OSError names it, and no file has changed.
    """
    folder = epath.Path(folder)
    tables = [table for section in report.sections for table in section.tables]
    files: dict[str, bytes] = {
        f"{name}.html": html(report).encode(),
        f"{name}.md": as_markdown(report, name).encode(),
        f"{name}.tex": ("\n\n".join(map(latex, tables)) + "\n").encode(),
        f"{name}.json": to_json({"facts": dict(report.facts), "data": data}),
    }
    for i, table in enumerate(tables):
        files[f"{name}.csv" if len(tables) == 1 else f"{name}_{i + 1}.csv"] = to_csv(table).encode()
    for section in report.sections:
        files |= {f"{name}_{picture.name}.{picture.form}": picture.content for picture in section.pictures}
    write_outputs({folder / file: content for file, content in files.items()}, overwrite=overwrite)
    return [folder / file for file in files]


def as_markdown(report: Report, name: str) -> str:
    """Returns the report as Markdown, with links to the picture files that `write_report` writes beside it."""
    parts = [f"# {_markdown(report.title)}", _markdown_paragraphs(report.text)]
    for section in report.sections:
        parts += [f"## {_markdown(section.title)}", _markdown_paragraphs(section.text)]
        for table in section.tables:
            parts += [_markdown_paragraphs(table.title), markdown(table)]
        parts += [f"![{_markdown(one.caption)}]({name}_{one.name}.{one.form})" for one in section.pictures]
    facts = [f"- {_markdown(key)}: {_markdown(_text(value))}" for key, value in report.facts.items()]
    return "\n\n".join(filter(None, [*parts, "## Provenance", "\n".join(facts)])) + "\n"


def html(report: Report) -> str:
    """Returns the report as one HTML page that contains its style, script, pictures and data, and loads no file."""

    def part(file: str) -> str:
        return (Path(__file__).parent / file).read_text(encoding="utf-8")

    kinds = {type(picture) for section in report.sections for picture in section.pictures}
    script = part("page.js") + (part("grid.js") if Grid in kinds else "")
    script += part("diagrams.js") if kinds & {ConfusionMatrix, ReliabilityDiagram} else ""
    style = part("page.css") + (part("grid.css") if Grid in kinds else "")
    options = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    options |= {"finalize": lambda value: printable(value) if type(value) is str else value}
    page = Template(part("page.html"), **options)
    return page.render(
        report=report,
        style=Markup(style),
        script=Markup(script),
        format_rows=format_rows,
        paragraphs=_paragraphs,
        grouped=lambda pictures: [(half, list(group)) for half, group in itertools.groupby(pictures, lambda p: p.half)],
        kind=lambda picture: type(picture).__name__,
        source=data_url,
        parts_of=lambda layer: layer if isinstance(layer, Mapping) else {None: layer},
        data_of=lambda picture: script_json(picture.values if isinstance(picture, Overlay) else picture.data()),
        facts={key: _text(value) for key, value in report.facts.items()},
    )


def script_json(value: Any) -> Markup:
    """Returns JSON that can stand in an HTML script: no `<` can end the script."""
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c"))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
