"""The table of the CRF for a tiny untrained network; its first row has the scores of evaluation."""

import numpy as np
import pytest
from etils import epath

from experiments.camvid import crf_table
from experiments.camvid.crf_table import PLAIN, Setting
from segjax.reporting import as_markdown
from segjax.trained_run import TrainedRun, score_run
from segjax.training import open_split
from segjax.training.network import make_model
from segjax.training.train_step import init_state

CRF = Setting("both kernels", 1, 1, 10, 3)

pytestmark = pytest.mark.slow  # trains nothing, but compiles a network for each table


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
    return workdir, [crf_table.stored(*run, range(4), setting, workdir) for setting in (PLAIN, CRF)]


def test_measure_of_the_network_alone_equals_evaluation(run, results):
    plain = results[1][0]
    assert plain["confusion"] == score_run(run[0], "val")["confusion"]


def test_measure_of_a_crf_counts_the_same_pixels(results):
    plain, crf = (np.array(one["confusion"]) for one in results[1])
    np.testing.assert_array_equal(crf.sum(1), plain.sum(1))
    assert not np.array_equal(crf, plain)


def test_stored_results_are_read_for_the_same_images_only(run, results, monkeypatch):
    workdir, (plain, _) = results
    monkeypatch.setattr(crf_table, "measure", lambda *_: pytest.fail("measured again"))
    assert crf_table.stored(*run, range(4), PLAIN, workdir) == plain
    monkeypatch.setattr(crf_table, "measure", lambda *_: {"images": 2})
    assert crf_table.stored(*run, range(2), PLAIN, workdir)["images"] == 2


def test_report_has_one_row_per_setting(run, results):
    page = as_markdown(crf_table.report(run[0], results[1]), "crf")
    assert "| network alone | – | – | – | – |" in page
    assert "| both kernels | 10 | 3 | 1 | 1 |" in page
    assert "| – | background | debris |" not in page
    assert "|  | background | debris |" in page
