"""The experiment end to end with two losses and three steps, and the tables of a run's log."""

import json
import math

import cv2
import pytest

from experiments.focal_paper import background_trap as trap


@pytest.mark.parametrize("data", trap.DATA)
def test_cells_differ_only_in_loss_and_prior(data):
    first, *others = (cell.config for cell in trap.make_cells(data, trap.LOSSES, (0,), rare_share=0.005))
    assert first.training.gradient_budget
    for config in others:
        config.objective, config.model.prior, config.model.head_stddev = first.objective, (), None
        assert config.to_json() == first.to_json()


def test_balanced_alpha_gives_both_classes_the_same_weight():
    weighted = [loss for loss in trap.LOSSES if loss.alpha == trap.BALANCED]
    (cell,) = trap.make_cells("road_debris", weighted, (0,), rare_share=0.005)
    alpha = cell.config.objective.alpha
    assert alpha * 0.005 == pytest.approx((1 - alpha) * 0.995)


@pytest.mark.slow
def test_command_writes_tables_and_a_figure_and_reads_finished_runs(tmp_path, python):
    command = ("-m", "experiments.focal_paper.background_trap", f"--workdir={tmp_path}", "--steps=3")
    done = python(*command, "--loss=CE", "--loss=CE with prior")
    assert done.returncode == 0, done.stderr
    assert "2/2  CE_with_prior,seed=0" in done.stdout
    name = "background_trap_road_debris"
    for text in (done.stdout, (tmp_path / f"{name}.md").read_text()):
        assert all(word in text for word in ("CE", "CE with prior", "easy background / hard background / rare class"))
    assert cv2.imread(str(tmp_path / f"{name}_curves.png")).shape == (616, 825, 3)
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert list(written["data"]) == ["CE", "CE with prior"]
    for (run,) in written["data"].values():
        assert all(0 <= run[curve] <= 1 for curve in trap.CURVES)
        for moment in trap.MOMENTS:
            for suffix in ("", ", pixels"):
                assert sum(run[moment][share + suffix] for share in trap.SHARES) == pytest.approx(1, abs=1e-6)
        assert run["curves"]["step"] == [3]
        assert run["budget"]["step"] == [1, 2, 3]
    assert written["facts"]["rare share of the training pixels"] == pytest.approx(0.0055, abs=5e-4)
    assert {"steps", "seeds", "seconds", "commit", "versions"} <= written["facts"].keys()
    table = (tmp_path / f"{name}_1.csv").read_bytes()
    again = python(*command, "--loss=CE", "--loss=CE with prior")
    assert again.returncode == 0, again.stderr
    assert "2/2" not in again.stdout  # nothing was trained
    assert (tmp_path / f"{name}_1.csv").read_bytes() == table


def test_measured_refuses_a_diverged_run(tmp_path):
    (cell,) = trap.make_cells("road_debris", trap.LOSSES[:1], (0,), rare_share=0.005)
    (tmp_path / cell.name).mkdir()
    (tmp_path / cell.name / "cell.json").write_text('{"status": "diverged", "diverged_at": 7, "provenance": {}}')
    with pytest.raises(RuntimeError, match="CE,seed=0 diverged at step 7"):
        trap.measured(cell, tmp_path)


def test_history_of_a_log(tmp_path):
    evaluated = {"eval/pixel_accuracy": 0.9, "eval/recall/crack": 0.2, "eval/iou/crack": 0.1}
    budget = {
        f"{prefix}/{name}/{kind}": value
        for prefix, values in {"budget": (0.1, 0.6, 0.05, 0.25), "budget_pixels": (0.9, 0.05, 0.02, 0.03)}.items()
        for (name, kind), value in zip(
            [("road", "easy"), ("road", "hard"), ("crack", "easy"), ("crack", "hard")], values, strict=True
        )
    }
    rows = [{"step": 1, "train/loss": 1.0, **budget}, {"step": 1, **evaluated, "eval/average_precision": 0.3}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves, shares = trap.history(tmp_path, ["road", "crack"])
    assert curves == {"step": [1], "pixel accuracy": [0.9], "recall": [0.2], "IoU": [0.1], "average precision": [0.3]}
    assert shares == {
        "step": [1],
        "easy background": [0.1],
        "hard background": [0.6],
        "rare class": [0.3],
        "easy background, pixels": [0.9],
        "hard background, pixels": [0.05],
        "rare class, pixels": [0.05],
    }


@pytest.mark.parametrize(
    ("recall", "expected"),
    [([0.7, 0.0, 0.2, 0.3], 30), ([0.0, 0.2, 0.0, 0.1], None), ([0.2, 0.3, 0.4, 0.5], 10), ([], None)],
)
def test_lasting(recall, expected):
    assert trap.lasting([10, 20, 30, 40][: len(recall)], recall, 0.1) == expected


def test_trapped_is_high_accuracy_and_low_recall():
    curves = {"recall": [0.7, 0.0, 0.05, 0.05, 0.6], "pixel accuracy": [0.5, 0.99, 0.985, 0.97, 0.99]}
    assert trap.trapped(curves, rare_share=0.01) == [False, True, True, False, False]


def test_moments():
    steps = list(range(1, 101))
    budget = {"step": steps, "rare class": [float(step) for step in steps]}
    got = {moment: shares["rare class"] for moment, shares in trap.moments(budget).items()}
    assert got == {"first step": 1, "at 10 %": 10, "half way": 50, "end": 98}


def test_coarse_leaves_out_nan_steps():
    budget = {"step": [1, 2, 3, 4], "rare class": [0.2, math.nan, 0.4, math.nan]}
    coarse = trap.coarse(budget, intervals=2)
    assert coarse == {"step": [1.5, 3.5], "rare class": [0.2, 0.4]}


def test_tables_over_two_seeds():
    shares = {share + suffix: 0.25 for share in trap.SHARES for suffix in ("", ", pixels")}
    common = {"α": 0.995, "recall > 0.1 from": None, "recall > 0.5 from": None, "seconds": 9}
    runs = [
        common
        | {"seed": i, "steps in the trap": 20 * i, **dict.fromkeys(trap.CURVES, 0.5 + i / 10)}
        | dict.fromkeys(trap.MOMENTS, shares)
        for i in (0, 1)
    ]
    (row,) = trap.scores_table("", {"weighted CE": runs}).rows
    assert (*row[:7], row[7].values) == ("weighted CE", "0", "0.995", None, "0, 20", "–, –", "–, –", (0.5, 0.6))
    (row,) = trap.budget_table({"weighted CE": runs}).rows
    assert row == ("weighted CE", *["25.0 / 25.0 / 25.0"] * 8)
