import io

import pytest
import rich.console

from segjax.reporting import Table, markdown, per_class_table, show, summary_line, to_csv

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


def test_the_per_class_table_has_a_row_a_class_and_the_means():
    table = per_class_table(SCORES, "scores")
    assert table.columns == ("class", "share", "IoU", "Dice", "precision", "recall")
    assert table.rows[0] == ("road", 1.0, 0.75, 0.8, 1.0, 0.75)
    assert [row[0] for row in table.rows] == ["road", "crack", "mean"]
    assert table.rows[2][2] == SCORES["mean_iou"]


def test_an_undefined_score_is_a_dash_and_not_a_number():
    assert "| crack | 0.000 | – | – | 0.000 | – |" in markdown(per_class_table(SCORES, "scores"))


def test_csv_keeps_full_precision():
    assert to_csv(Table("t", ("a", "b"), [("x", 1 / 3)])) == f"a,b\nx,{1 / 3!r}\n"


def test_a_terminal_shows_title_columns_and_values():
    console = rich.console.Console(file=io.StringIO(), width=80)
    show(per_class_table(SCORES, "validation scores"), console)
    for part in ("validation scores", "precision", "crack", "0.750"):
        assert part in console.file.getvalue()


def test_the_summary_line_names_only_what_was_measured():
    assert summary_line(SCORES) == "mean_iou 0.750  pixel_accuracy 0.750  mean_accuracy 0.750"
    assert summary_line({"mean_iou": 0.5, "average_precision": 0.25}) == "mean_iou 0.500  average_precision 0.250"


@pytest.mark.parametrize("text", ["a|b", "x"])
def test_markdown_rows_keep_their_cells(text):
    row = markdown(Table("t", ("name", "score"), [(text, 1)])).splitlines()[-1]
    assert row.replace("\\|", "").count("|") == 3
