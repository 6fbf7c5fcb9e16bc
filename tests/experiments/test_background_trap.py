"""The experiment end to end with two losses and three steps, and what it makes of a run's log."""

import json
import math

import cv2
import pytest

from experiments.focal_paper import background_trap as trap
from segjax.training import validate

RUNS = [(data, loss) for data in trap.DATA for loss in trap.LOSSES]


@pytest.mark.parametrize(("data", "loss"), RUNS, ids=lambda one: getattr(one, "name", one))
def test_every_run_has_a_valid_config_that_differs_in_loss_and_prior_alone(data, loss):
    config, first = (trap.run_config(data, one, rare_share=0.005) for one in (loss, trap.LOSSES[0]))
    validate(config)
    assert config.training.gradient_budget
    config.objective, config.model.prior, config.model.head_stddev = first.objective, (), None
    assert config.to_json() == first.to_json()


def test_a_balanced_alpha_gives_both_classes_the_same_weight():
    (weighted,) = (loss for loss in trap.LOSSES if loss.alpha == trap.BALANCED)
    alpha = trap.run_config("road_debris", weighted, rare_share=0.005).objective.alpha
    assert alpha * 0.005 == pytest.approx((1 - alpha) * 0.995)


# End to end


@pytest.fixture(scope="module")
def command(tmp_path_factory, python):
    workdir = tmp_path_factory.mktemp("trap")
    arguments = (
        "-m",
        "experiments.focal_paper.background_trap",
        f"--workdir={workdir}",
        "--steps=3",
        "--loss=CE",
        "--loss=CE with prior",
    )
    done = python(*arguments)
    assert done.returncode == 0, done.stderr
    return workdir, arguments, done


def test_three_steps_of_two_losses_give_tables_and_a_figure(command):
    workdir, _, done = command
    name = "background_trap_road_debris"
    for text in (done.stdout, (workdir / f"{name}.md").read_text()):
        assert all(word in text for word in ("CE", "CE with prior", "easy background / hard background / rare class"))
    assert cv2.imread(str(workdir / f"{name}_curves.png")).shape == (616, 825, 3)
    written = json.loads((workdir / f"{name}.json").read_text())
    assert list(written["data"]) == ["CE", "CE with prior"]
    for (run,) in written["data"].values():
        assert all(0 <= run[curve] <= 1 for curve in trap.CURVES)
        for moment in trap.MOMENTS:
            for of in ("", ", pixels"):
                assert sum(run[moment][share + of] for share in trap.SHARES) == pytest.approx(1, abs=1e-6)
        assert run["curves"]["step"] == [3]
        assert run["budget"]["step"] == [1, 2, 3]
    assert written["facts"]["rare share of the training pixels"] == pytest.approx(0.0055, abs=5e-4)
    assert {"steps", "seeds", "seconds", "commit", "versions"} <= written["facts"].keys()


def test_runs_that_are_done_are_read_and_not_trained_again(command, python):
    workdir, arguments, _ = command
    table = workdir / "background_trap_road_debris_1.csv"
    before = table.read_bytes()
    done = python(*arguments)
    assert done.returncode == 0, done.stderr
    assert "training and" not in done.stdout  # the line with which a training begins
    assert table.read_bytes() == before


def test_a_run_with_another_config_is_not_taken_for_done(command):
    workdir = command[0] / "road_debris" / "CE_0"
    config = trap.run_config("road_debris", trap.LOSSES[0], rare_share=0.005, steps=3)
    assert trap.finished(config, workdir)["steps"] == 3
    config.optimizer.learning_rate = 1.0
    assert trap.finished(config, workdir) is None
    assert trap.finished(config, workdir.parent) is None


# What is made of a log


def test_history_reads_scores_and_budgets_by_name(tmp_path):
    evaluated = {"eval/pixel_accuracy": 0.9, "eval/recall/crack": 0.2, "eval/iou/crack": 0.1}
    budget = {
        f"{of}/{name}/{kind}": value
        for of, values in {"budget": (0.1, 0.6, 0.05, 0.25), "budget_pixels": (0.9, 0.05, 0.02, 0.03)}.items()
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
def test_a_threshold_counts_as_passed_when_it_stays_passed(recall, expected):
    assert trap.lasting([10, 20, 30, 40][: len(recall)], recall, 0.1) == expected


def test_the_trap_is_high_accuracy_and_little_found():
    curves = {"recall": [0.7, 0.0, 0.05, 0.05, 0.6], "pixel accuracy": [0.5, 0.99, 0.985, 0.97, 0.99]}
    assert trap.trapped(curves, rare_share=0.01) == [False, True, True, False, False]


def test_moments_are_the_first_step_and_means_around_a_tenth_a_half_and_the_end():
    steps = list(range(1, 101))
    budget = {"step": steps, "rare class": [float(step) for step in steps]}
    got = {moment: shares["rare class"] for moment, shares in trap.moments(budget).items()}
    assert got == {"first step": 1, "at 10 %": 10, "half way": 50, "end": 98}


def test_a_step_without_a_gradient_is_left_out_of_the_means():
    budget = {"step": [1, 2, 3, 4], "rare class": [0.2, math.nan, 0.4, math.nan]}
    coarse = trap.coarse(budget, intervals=2)
    assert coarse == {"step": [1.5, 3.5], "rare class": [0.2, 0.4]}


def test_rows_give_each_seeds_steps_and_the_mean_and_deviation_of_the_scores():
    shares = {share + of: 0.25 for share in trap.SHARES for of in ("", ", pixels")}
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
