import json

import cv2
import numpy as np
import pytest

from experiments.camvid import uncertainty_quality as quality
from segjax.reporting.run_page import LOG_BINS
from segjax.training import train


@pytest.mark.slow
def test_command_writes_a_table_a_figure_and_json(tiny_recipe, tmp_path, python, quiet):
    tiny_recipe.objective.void, tiny_recipe.training.phases = "ignore", ()
    tiny_recipe.training.steps = tiny_recipe.training.evaluate_every = 2
    train(tiny_recipe, tmp_path / "run", console=quiet)
    done = python(
        "-m",
        "experiments.camvid.uncertainty_quality",
        f"--checkpoint={tmp_path / 'run'}",
        f"--output={tmp_path / 'out'}",
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out" / "uncertainty_quality.json").read_text())
    assert written["images"] == 3
    assert list(written["uncertainties"]) == list(quality.NAMES)
    for scores in written["uncertainties"].values():
        assert all(0 <= value <= 1 for value in scores.values())
    assert all(name in (tmp_path / "out" / "uncertainty_quality.md").read_text() for name in quality.NAMES)
    assert cv2.imread(str(tmp_path / "out" / "uncertainty_quality.png")).shape == (500, 1600, 3)


def test_scores_of_a_perfect_and_a_reversed_uncertainty():
    perfect = {"errors": np.zeros((2, LOG_BINS), np.int64), "void": np.zeros((2, 4096), np.int64)}
    perfect["errors"][1, 10], perfect["errors"][0, 20] = 90, 10  # correct pixels are more certain
    perfect["void"][0, 10], perfect["void"][1, 20] = 90, 10
    reverse = {name: histogram[:, ::-1].copy() for name, histogram in perfect.items()}
    found = quality.scores({"entropy": perfect, "variance, analytic": reverse})
    assert found["entropy"]["uncertain_given_inaccurate"] == 1.0
    assert found["entropy"]["accurate_given_certain"] == 1.0
    assert found["entropy"]["void_average_precision"] == pytest.approx(1.0)
    assert found["entropy"]["void_fpr_at_95_tpr"] == 0.0
    assert found["variance, analytic"]["void_average_precision"] < 0.2
    assert found["variance, analytic"]["area_under_risk_coverage"] > found["entropy"]["area_under_risk_coverage"]
