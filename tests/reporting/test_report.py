"""Reports in every format, and the HTML page in a browser."""

import csv
import html.parser as html_parser
import io
import json
import re

import cv2
import numpy as np
import pytest
import rich.console

from segjax.reporting import (
    Picture,
    Report,
    Section,
    Spread,
    Table,
    check_report,
    curves,
    dots,
    heatmap,
    html,
    latex,
    markdown,
    png,
    show,
    write_report,
)
from segjax.reporting.figures import confusion_figure, reliability_figure
from segjax.storage import ForeignFileError, printable


@pytest.fixture(scope="module")
def report():
    table = Table(
        "AP by γ & α",
        ("γ", "AP", "AP in the paper"),
        [("0 <none>", Spread((0.25, 0.5)), 31.1), ("2", Spread((0.75, 0.5), 1), 34.0)],
        highest=("AP", "AP in the paper"),
    )
    line = curves({"γ = 2": ([1, 2, 3], [[0.1, 0.5, 0.6], [0.2, 0.4, None]])}, title="AP", x="step", y="AP")
    grid = heatmap(
        [[0.1, 0.2], [np.nan, 0.4]], [[0.01, np.nan], [np.nan] * 2], rows="ab", columns="cd", title="AP", x="α", y="γ"
    )
    pictures = (Picture("ap", "AP through training", png(line)), Picture("grid", "AP by γ and α", png(grid)))
    sections = (Section("Table 1b", "Is γ = 2 best?", (table,), pictures),)
    return Report("Focal loss, again", "The question.\n\nHow.", sections, {"commit": "abc", "versions": {"jax": "1"}})


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "results"
    return folder, write_report(report, folder, "focal", data={"cells": [1, 2]})


def test_heatmap_shows_spreads_and_leaves_nan_out():
    grid = heatmap([[0.1, np.nan]], [[0.01, np.nan]], rows="a", columns="cd", title="AP", x="α", y="γ")
    assert [text.get_text() for text in grid.axes[0].texts] == ["0.100\n± 0.010"]


def test_dots_has_the_highest_mean_at_the_top_and_a_dot_per_seed():
    figure = dots({"low": (0.1, 0.3), "none": (), "high": (0.5, 0.7)}, title="AP", x="AP")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["low", "high"]
    lines, seeds, means = axes.lines[3:]
    assert (list(seeds.get_xdata()), seeds.get_ydata()[0]) == ([0.5, 0.7], 1)
    assert means.get_xdata() == pytest.approx([0.6])
    assert list(lines.get_xdata()) == [0.5, 0.7]


def test_write_report_writes_every_format(written):
    folder, paths = written
    names = ["focal.html", "focal.md", "focal.tex", "focal.json", "focal.csv", "focal_ap.png", "focal_grid.png"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in folder.iterdir()) == sorted([".segjax.sha256", *names])


def test_write_report_numbers_agree_between_formats(written):
    folder, _ = written
    for suffix in ("html", "md"):
        text = (folder / f"focal.{suffix}").read_text()
        assert "0.375 ± 0.177" in text
        assert "0.625 ± 0.177 (2 of 3)" in text
    assert r"\textbf{0.625 $\pm$ 0.177 (2 of 3)}" in (folder / "focal.tex").read_text()
    rows = list(csv.DictReader(io.StringIO((folder / "focal.csv").read_text())))
    assert [float(row["AP"]) for row in rows] == [0.375, 0.625]
    assert float(rows[0]["AP std"]) == pytest.approx(0.125 * 2**0.5)
    assert json.loads((folder / "focal.json").read_text()) == {
        "facts": {"commit": "abc", "versions": {"jax": "1"}},
        "data": {"cells": [1, 2]},
    }


def test_write_report_only_the_best_is_bold(written):
    folder, _ = written
    page = (folder / "focal.html").read_text()
    assert re.findall("<strong>(.*?)</strong>", page) == ["0.625 ± 0.177 (2 of 3)", "34.000"]
    assert (folder / "focal.md").read_text().count("**") == 4


def test_write_report_escapes_markup(written):
    folder, _ = written
    assert "0 &lt;none&gt;" in (folder / "focal.html").read_text()
    assert r"\caption{AP by $\gamma$ \& $\alpha$}" in (folder / "focal.tex").read_text()


def test_html_escapes_every_text():
    evil = "<img src=x onerror=\"alert('&')\"> </script><script>alert(1)</script>"
    table = Table(evil, (evil, "AP"), [(evil, 0.5)])
    section = Section(evil, f"{evil}\n\n{evil}", (table,), (Picture("p", evil, b"png"),))
    page = html(Report(evil, evil, (section,), {evil: {evil: [evil]}}))
    assert evil not in page
    assert "<img src=x" not in page
    assert page.count("<script") == 1  # its own
    # In the title, heading, text, section (and the contents), its two paragraphs, table, picture (twice) and facts.
    assert page.count("&lt;script&gt;alert(1)") == 15
    assert re.search('alt="[^"<]*&#34;alert', page)  # a quote cannot end the attribute


def test_as_markdown_links_the_picture_files(written):
    folder, _ = written
    shown = re.findall(r"!\[.*?\]\((.*?)\)", (folder / "focal.md").read_text())
    assert shown == ["focal_ap.png", "focal_grid.png"]
    for name in shown:
        assert cv2.imread(str(folder / name)).std() > 10


def test_html_loads_no_other_file(report):
    page = html(report)
    found = re.findall(r"\w*https?://[^'\"]*", page)
    assert set(found) == {"http://www.w3.org/2000/svg"}  # the name of SVG, which is not loaded
    assert "default-src 'none'" in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall('src="(.*?)"', page))


def test_write_report_prints_nested_facts(report, written):
    folder, _ = written
    for name in ("focal.html", "focal.md"):
        assert "jax 1" in (folder / name).read_text()


@pytest.mark.slow
def test_html_in_a_browser_has_no_error_and_fits_the_window(report, browser):
    wide = Table(
        "a" * 200, ("name", *(f"column {i}" for i in range(30))), [("b" * 200, *range(30))], text=("column 3",)
    )
    section = Section("c" * 100, "d" * 100, (wide,), report.sections[0].pictures[:1] * 3)
    sections = (*report.sections, section)
    page = html(report._replace(sections=sections, facts={"e" * 100: "f" * 500, "versions": {"jax": "1"}}))
    expected = {"images": [True] * 5, "charts": 0, "cells": 6 + 31, "wide": False}
    assert browser(page) == {1280: expected, 390: expected}


def test_html_groups_half_width_pictures():
    small, large = Picture("a", "a", b"png", half=True), Picture("b", "b", b"png")
    section = Section("", "", (), (small, small, large, small))
    parts = re.findall('<div class="halves">|</div>|alt="(.)"', html(Report("", "", (section,), {})))
    assert parts == ["", "a", "a", "", "b", "", "a", ""]


def test_text_columns_are_aligned_left_in_every_format():
    table = Table("t", ("name", "value", "meaning"), [("a", 1, "b")], text=("meaning",))
    assert html(Report("", "", (Section("", "", (table,)),), {})).count('class="text"') == 2
    assert "| :-- | --: | :-- |" in markdown(table)
    assert r"\begin{tabular}{lrl}" in latex(table)


def test_write_report_replaces_its_own_files_and_no_other(report, tmp_path):
    write_report(report, tmp_path, "focal")
    write_report(report, tmp_path, "focal")
    (tmp_path / "focal.tex").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for refuse in (check_report, lambda *where: write_report(report, *where)):
        with pytest.raises(ForeignFileError, match=r"focal\.tex: exists"):
            refuse(tmp_path, "focal")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    write_report(report, tmp_path, "focal", overwrite=True)
    assert (tmp_path / "focal.tex").read_text() != "mine"


@pytest.mark.parametrize("name", ["focal_2.csv", "focal_grid.png"])
def test_check_report_names_a_foreign_table_or_picture_before_the_report_is_made(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ForeignFileError, match=re.escape(name)):
        check_report(tmp_path, "focal")


def test_curves_missing_value_leaves_a_gap():
    figure = curves({"a": ([1, 2], [[None, 0.5]])}, title="t", x="x", y="y")
    (line,) = figure.axes[0].lines
    assert np.ma.getmaskarray(line.get_ydata()).tolist() == [True, False]


def test_curves_series_without_seeds_is_in_the_legend():
    figure = curves({"a": ([], []), "b": ([1, 2], [[0.5, 0.6]])}, title="t", x="x", y="y")
    assert [text.get_text() for text in figure.axes[0].get_legend().texts] == ["a", "b"]


# Text from outside.

HOSTILE = (
    *("[bold]x[/bold]", "[/]", "a|b", "`tick`", "*s* _u_ ~~t~~ <b>&amp;", "![x](y)", r"100 % $x_1$ {a} \cmd ~ ^ #"),
    *("$x$", r"$\frac{$", r"\$", "\\", "1. one", "- x", "> q", "=1+1", 'q"uo,te', "</td><script>alert(1)</script>"),
    *("\x1b[2J\x1b[31mred", "two\nlines", "\r", "\x00", "\u202egnp.exe", "\udcff", "\u2028", "日本 è", "  "),
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Returns a folder with a report in which every text is hostile, and its table."""
    table = Table("\n".join(HOSTILE), (*HOSTILE, "AP"), [(*HOSTILE[i:], *HOSTILE[:i], 0.5) for i in (0, 1)], ("AP",))
    sections = [Section(name, name, (table,), (Picture(f"p{i}", name, b"png"),)) for i, name in enumerate(HOSTILE)]
    folder = tmp_path_factory.mktemp("hostile")
    facts = {name: {name: [name]} for name in HOSTILE}
    for one in sections[1:]:
        assert html(Report(one.title, one.text, (one,), facts))
    write_report(Report(HOSTILE[0], "\n\n".join(HOSTILE), tuple(sections[:1]), facts), folder, "r", {"names": HOSTILE})
    return folder, table


class Cells(html_parser.HTMLParser):
    """Collects the tags and the texts of the cells of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells and self.get_starttag_text().startswith(("<td", "<th", "<strong")):
            self.cells[-1] += data.strip("\n") if data.strip() else ""


def test_html_of_hostile_texts_has_its_own_tags_and_the_texts_in_its_cells(hostile):
    page = (hostile[0] / "r.html").read_text(encoding="utf-8")
    found = Cells()
    found.feed(page)
    assert found.tags.count("script") == 1  # its own
    assert found.tags.count("td") == 2 * found.tags.count("th") == 2 * (len(HOSTILE) + 1)
    names = [printable(name).strip() for name in HOSTILE]
    assert [cell.strip() for cell in found.cells[: len(HOSTILE)]] == names
    assert [cell.strip() for cell in found.cells[len(HOSTILE) + 1 :][: len(HOSTILE)]] == names


def test_csv_and_json_of_hostile_texts_are_read_back(hostile):
    folder, _ = hostile
    head, row, _ = csv.reader(io.StringIO((folder / "r.csv").read_text(encoding="utf-8")))
    assert head[:-1] == row[:-1] == [printable(name) for name in HOSTILE]
    found = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    assert found["data"]["names"] == list(HOSTILE)
    assert list(found["facts"]) == list(HOSTILE)


def test_markdown_of_hostile_texts_has_its_cells_and_no_markup_of_theirs(hostile):
    text = (hostile[0] / "r.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [len(re.split(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows] == [len(HOSTILE) + 3] * 4
    plain = re.sub(r"\\[^\w\s]", "", text)  # without what is escaped
    assert not re.search(r"<b>|<script|`|~~|\$|&amp;(?!amp;)", plain.replace("\\\\", ""))
    outside = [line for line in plain.splitlines() if not line.startswith(("| ", "#", "- ", "!["))]
    assert not [line for line in outside if re.match(r"[-+=>]|\d+[.)]", line)]
    assert [line for line in text.splitlines() if line.startswith("![")] == [f"![{markdown_of(HOSTILE[0])}](r_p0.png)"]


def markdown_of(name):
    return markdown(Table("", (name,), [])).splitlines()[0].removeprefix("| ").removesuffix(" |")


def test_latex_of_hostile_texts_has_its_cells_and_no_command_of_theirs(hostile):
    text = (hostile[0] / "r.tex").read_text(encoding="utf-8")
    rows = [line.strip() for line in text.splitlines() if line.endswith("\\\\")]
    assert [len(re.split(r"(?<!\\)&", row)) for row in rows] == [len(HOSTILE) + 1] * 3
    own = r"\\(begin|end|caption|toprule|midrule|bottomrule|text\w+|uparrow|times)\b|\\\\$|\$[<>]\$"
    rest = re.sub(own, "", re.sub(r"\\[&%$#_{}]", "", text), flags=re.MULTILINE)
    assert not re.search(r"\\|[%$#^~]", rest)


def test_show_prints_hostile_texts_without_markup_and_escapes(hostile):
    console = rich.console.Console(file=io.StringIO(), width=20_000)
    show(hostile[1]._replace(columns=(*HOSTILE, "AP")), console)
    lines = console.file.getvalue().splitlines()
    row = next(line for line in lines if "0.500" in line)
    assert all(printable(name).strip() in row for name in HOSTILE)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", console.file.getvalue())


def test_figures_draw_hostile_names_as_they_are():
    names = (r"100 % $x_1$", r"$\frac{$", "_a", "\x1b[2J", "\udcff", "日本")
    lines = {name: ([1, 2], [[0.1, 0.2]]) for name in names}
    drawn = [
        curves(lines, title=r"$\frac{$", x="\udcff", reference=("$", 0.5)),
        dots(dict.fromkeys(names, (0.1,)), title="$x$", x="x"),
        confusion_figure(np.eye(len(names), dtype=int).tolist(), names),
        heatmap([[0.1] * 2], [[0.1] * 2], rows=[r"$\frac{$"], columns=["$x$", "_"], title=r"$\frac{$", x="x", y="y"),
    ]
    assert all(png(figure).startswith(b"\x89PNG") for figure in drawn)
    for text in [*drawn[0].legends[0].texts[:-1], *drawn[1].axes[0].get_yticklabels()]:
        assert text._preprocess_math(text.get_text()) == (text.get_text().replace(r"\$", "$"), False)
    shown = [text.get_text().replace(r"\$", "$").removeprefix(" ") for text in drawn[0].legends[0].texts[:-1]]
    assert shown == [printable(name).removeprefix(" ") for name in names]
    assert "_only" in png_labels({"_only": ([1], [[0.5]]), "b": ([1], [[0.5]])})


def png_labels(lines):
    return [text.get_text().strip() for text in curves(lines, title="t", x="x").axes[0].get_legend().texts]


def test_reliability_figure_keeps_the_powers_on_its_axis():
    figure = reliability_figure([0, 0.5, 1], [0.2, 0.8], [0.1, 0.7], [1, 900])
    png(figure)
    labels = [label for label in figure.axes[1].get_yticklabels() if label.get_text()]
    assert all(label._preprocess_math(label.get_text())[1] for label in labels)
    assert labels
