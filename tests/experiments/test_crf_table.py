"""The table of the CRF, of a tiny network that was not trained: its first row is the evaluation's own."""

import numpy as np
import pytest
from etils import epath

from experiments.camvid import crf_table
from experiments.camvid.crf_table import PLAIN, Setting
from segjax.reporting import as_markdown
from segjax.trained_run import TrainedRun, score_run
from segjax.training import open_split
from segjax.training.train_step import init_state, make_model

CRF = Setting("both kernels", 1, 1, 10, 3)


@pytest.fixture(scope="module")
def run(tiny_scenes, tmp_path_factory):
    config = tiny_scenes.copy_and_resolve_references()
    config.model.prior = ()  # a network that was not trained then predicts both classes
    model, source = make_model(config, 2), open_split(config.data, "val")
    folder = epath.Path(tmp_path_factory.mktemp("run"))
    return TrainedRun(folder, config, model, init_state(config, model), source.label_set), source


@pytest.fixture(scope="module")
def results(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("crf")
    return workdir, [crf_table.kept(*run, range(4), setting, workdir) for setting in (PLAIN, CRF)]


def test_the_network_alone_has_the_scores_of_evaluation(run, results):
    plain = results[1][0]
    assert plain["confusion"] == score_run(run[0], "val")["confusion"]


def test_a_crf_counts_the_same_pixels_and_changes_their_classes(results):
    plain, crf = (np.array(one["confusion"]) for one in results[1])
    np.testing.assert_array_equal(crf.sum(1), plain.sum(1))
    assert not np.array_equal(crf, plain)


def test_what_is_there_is_read_and_of_other_images_measured_anew(run, results, monkeypatch):
    workdir, (plain, _) = results
    monkeypatch.setattr(crf_table, "measure", lambda *_: pytest.fail("measured again"))
    assert crf_table.kept(*run, range(4), PLAIN, workdir) == plain
    monkeypatch.setattr(crf_table, "measure", lambda *_: {"images": 2})
    assert crf_table.kept(*run, range(2), PLAIN, workdir)["images"] == 2


def test_the_report_has_a_row_a_setting_with_its_scores(run, results):
    page = as_markdown(crf_table.report(run[0], results[1]), "crf")
    assert "| network alone | – | – | – | – |" in page
    assert "| both kernels | 10 | 3 | 1 | 1 |" in page
    assert "| – | background | debris |" not in page
    assert "|  | background | debris |" in page
