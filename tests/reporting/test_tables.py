"""Tables on a terminal, as Markdown, CSV and LaTeX."""

import io

import pytest
import rich.console

from segjax.reporting import (
    Spread,
    Table,
    format_rows,
    latex,
    markdown,
    per_class_table,
    score_tables,
    show,
    summary_line,
    to_csv,
)

SCORES = {
    "classes": ["road", "crack"],
    "confusion": [[6, 2], [0, 0]],
    "mean_iou": 0.75,
    "mean_dice": 0.8,
    "mean_accuracy": 0.75,
    "pixel_accuracy": 0.75,
    "iou_per_class": [0.75, float("nan")],
    "dice_per_class": [0.8, float("nan")],
    "precision_per_class": [1.0, 0.0],
    "recall_per_class": [0.75, float("nan")],
}


def test_score_tables_of_a_detector():
    scores = {"classes": ["debris"], "objects": [7], "ap": 0.25, "ap50": 0.5, "ar100": 0.75}
    scores |= {f"{name}_per_class": [scores[name]] for name in ("ap", "ap50", "ar100")}
    (table,) = score_tables(scores, "scores")
    assert table.title == "scores: AP of boxes"
    assert table.rows == [("debris", 7, 0.25, 0.5, 0.75), ("mean", 7, 0.25, 0.5, 0.75)]
    assert summary_line(scores) == "ap 0.250  ap50 0.500  ar100 0.750"


def test_per_class_table_rows():
    table = per_class_table(SCORES, "scores")
    assert table.columns == ("class", "share", "IoU", "Dice", "precision", "recall")
    assert table.rows[0] == ("road", 1.0, 0.75, 0.8, 1.0, 0.75)
    assert [row[0] for row in table.rows] == ["road", "crack", "mean"]
    assert table.rows[2][2] == SCORES["mean_iou"]


def test_score_tables_of_a_run_with_unseen_classes():
    measured = {"average_precision": 0.5, "auroc": 0.75, "fpr_at_95_tpr": 0.25}
    scores = SCORES | {"unknown": {"pixels": 3, "share": 0.1, "energy": measured}}
    assert [len(score_tables(each, "scores")) for each in (SCORES, scores)] == [1, 2]
    assert score_tables(scores, "scores")[1].rows == [("energy", 0.5, 0.75, 0.25)]


def test_markdown_undefined_score_is_a_dash():
    assert "| crack | 0.000 | – | – | 0.000 | – |" in markdown(per_class_table(SCORES, "scores"))


def test_to_csv_full_precision():
    assert to_csv(Table("t", ("a", "b"), [("x", 1 / 3)])) == f"a,b\nx,{1 / 3!r}\n"


def test_show_on_a_wide_terminal():
    console = rich.console.Console(file=io.StringIO(), width=80)
    show(per_class_table(SCORES, "validation scores"), console)
    for part in ("validation scores", "precision", "crack", "0.750"):
        assert part in console.file.getvalue()


def test_summary_line_without_missing_scores():
    assert summary_line(SCORES) == "mean_iou 0.750  pixel_accuracy 0.750  mean_accuracy 0.750"
    rare = {"mean_iou": 0.5, "auroc": 0.75, "rare_class": "debris"}
    assert summary_line(rare) == "mean_iou 0.500  auroc 0.750 (debris)"
    assert summary_line({"mean_iou": 0.5, "average_precision": 0.25}) == "mean_iou 0.500  average_precision 0.250"


@pytest.mark.parametrize("text", ["a|b", "x"])
def test_markdown_escapes_the_column_separator(text):
    row = markdown(Table("t", ("name", "score"), [(text, 1)])).splitlines()[-1]
    assert row.replace("\\|", "").count("|") == 3


def test_show_transposes_a_table_on_a_narrow_terminal():
    columns = ("network", *(f"measurement{i}" for i in range(8)))
    rows = [(f"row{n}", *(100 * n + i for i in range(8))) for n in range(12)]
    with io.StringIO() as file:
        show(Table("Many columns", columns, rows), rich.console.Console(file=file, width=50))
        printed = file.getvalue()
    assert "…" not in printed
    assert printed.count("Many columns") == 1
    assert max(map(len, printed.splitlines())) <= 50
    lines = [line.split() for line in printed.splitlines() if line.strip().startswith("measurement3")]
    assert [value for line in lines for value in line[1:]] == [str(row[4]) for row in rows]


def test_format_rows_best_to_printed_decimals():
    rows = [("a", 0.50004, 3), ("b", 0.50001, 2), ("c", 0.4, None)]
    table = Table("t", ("name", "score", "steps"), rows, highest=("score",), lowest=("steps",))
    assert [[best for _, best in row] for row in format_rows(table)] == [
        [False, True, False],
        [False, True, True],
        [False, False, False],
    ]


def test_to_csv_spread_fills_two_columns():
    table = Table("t", ("name", "score"), [("a", Spread((1.0, 3.0))), ("b", 0.5)])
    assert to_csv(table).splitlines() == ["name,score,score std", f"a,2.0,{2**0.5!r}", "b,0.5,"]


def test_table_without_rows():
    table = Table("t", ("name", "score"), [], highest=("score",))
    assert to_csv(table) == "name,score\n"
    assert markdown(table).splitlines() == ["| name | score |", "| :-- | --: |"]


def test_latex_escapes_special_characters():
    text = latex(Table("100 % & more", ("a_b", "π"), [("x~y", 0.5)]))
    assert r"\caption{100 \% \& more}" in text
    assert r"a\_b & $\pi$ \\" in text
    assert r"x\textasciitilde{}y & 0.500 \\" in text
    assert r"recall $>$ 0.1 & 3 $\times$ 4 \\" in latex(Table("", ("recall > 0.1", "3 × 4"), []))
    assert "    {}[0, 1] & 0.500" in latex(Table("", ("range", "x"), [("[0, 1]", 0.5)]))


def test_markdown_escapes_special_characters():
    text = markdown(Table("", ("FL*", "<none>"), [("FL*, γ", "a\\b")]))
    assert text.splitlines()[0] == "| FL\\* | &lt;none> |"
    assert text.splitlines()[2] == "| FL\\*, γ | a\\\\b |"
