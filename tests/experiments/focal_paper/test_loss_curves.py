"""Distribution of the loss over pixels: by hand, and of a trained network."""

import json
import shutil

import numpy as np
import pytest

from experiments.focal_paper import loss_curves
from experiments.sweep import results_io
from experiments.sweep.paper_report import SweepResults


def test_held_by_hardest():
    assert loss_curves.held_by_hardest(np.array([1.0, 0.0, 4.0, 2.0, 1.0])) == pytest.approx(0.5)
    assert loss_curves.held_by_hardest(np.ones(10)) == pytest.approx(0.2)
    assert np.isnan(loss_curves.held_by_hardest(np.zeros(5)))


def test_cumulative_runs_from_easiest_to_hardest():
    at, held = loss_curves.cumulative(np.array([3.0, 0.0, 1.0, 0.0]), points=5)
    np.testing.assert_allclose(at, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(held, [0, 0, 0, 0.25, 1])


def test_held_by_hardest_grows_with_gamma():
    logits = np.random.default_rng(0).normal(-4, 2, 4000).astype(np.float32)
    held = [loss_curves.held_by_hardest(loss_curves.focal(logits, False, gamma)) for gamma in loss_curves.GAMMAS]
    assert held == sorted(held)
    assert held[-1] > 0.95


def test_shapes_has_one_line_per_loss():
    probability, logit, gradient = loss_curves.shapes().axes
    assert [len(axes.lines) for axes in (probability, logit, gradient)] == [5, 7, 7]
    # Cross entropy's slope at x_t = 0 is a half, and FL's with γ = 2 is less than half of that far above.
    ce, focal = gradient.lines[0].get_ydata(), gradient.lines[3].get_ydata()
    assert np.interp(0, gradient.lines[0].get_xdata(), ce) == pytest.approx(0.5, abs=1e-3)
    assert focal[-1] < 0.5 * ce[-1]


@pytest.mark.slow
def test_sections_of_a_trained_network(trained_sweep, tmp_path):
    cells, workdir, _ = trained_sweep
    cells = cells[1:2]
    form, *rest = loss_curves.sections(SweepResults(cells, tmp_path))  # nothing is trained there
    assert (rest, form.pictures[0].name) == ([], "shapes")
    shutil.copytree(workdir / cells[0].name, tmp_path / cells[0].name)
    _, figure = loss_curves.sections(SweepResults(cells, tmp_path))
    (table,) = figure.tables
    assert [row[0] for row in table.rows] == ["0", "0.5", "1", "2"]
    for _, *shares in table.rows:
        assert all(0.2 <= share.mean <= 1 for share in shares)
    logits = loss_curves.logits_of(tmp_path / cells[0].name)
    assert len(logits.rare) + len(logits.background) <= 4 * 64 * 96
    assert f"{len(logits.rare)} pixels of the rare class" in figure.text
    # Imported elsewhere, without the network: the same table, without the picture.
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"data": results_io.cells_as_json(cells, SweepResults(cells, tmp_path).by_cell)}))
    results_io.import_results(cells, tmp_path / "other", file)
    _, again = loss_curves.sections(SweepResults(cells, tmp_path / "other"))
    assert again.tables == figure.tables
    assert (len(figure.pictures), len(again.pictures)) == (1, 0)
