"""One pass over a split: its scores are those of an evaluation, and it shows the best and the worst images."""

import io

import cv2
import numpy as np
import pytest
import rich.console
from sklearn.metrics import average_precision_score

from segjax import metrics
from segjax.data import UNSEEN, VOID, label_set, open_split
from segjax.reporting import run_page
from segjax.reporting.run_page import best_and_worst, inspect_run
from segjax.trained_run import TrainedRun, score_run
from segjax.training import defaults
from segjax.training.network import make_model
from segjax.training.train_step import init_state


def fresh_run(config):
    """Returns a run that was not trained."""
    labels = label_set(config.data)
    model = make_model(config, labels.num_classes, None if config.parallel == "jit" else "data")
    return TrainedRun(None, config, model, init_state(config, model), labels)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = defaults()
    config.data.data_dir = str(tmp_path_factory.mktemp("prepared"))
    config.data.scene_size, config.data.size = (64, 96), (32, 48)
    config.data.train_examples, config.data.val_examples, config.data.workers = 12, 6, 0
    config.model.width, config.model.depth, config.model.padding = 4, 1, "zeros"
    config.model.dropout, config.training.global_batch = "analytic", 4
    config.seed = 3  # a head that does not predict the same class everywhere
    return config


@pytest.fixture(scope="module")
def traced():
    """Shapes of the features each time that a program with uncertainties was traced."""
    return []


@pytest.fixture(scope="module")
def terminal():
    return rich.console.Console(file=io.StringIO(), force_terminal=True, width=80)


@pytest.fixture(scope="module")
def inspection(config, traced, terminal):
    """Results of the pass, with one uncertainty replaced by 1 + the image's index."""

    def index_map(variables, features, examples, **kinds):
        traced.append(features.shape)
        return {"index": (features[..., 0] * 0) + examples[:, None, None] + 1}

    run = fresh_run(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_page.inference, "head_uncertainty_maps", index_map)
        patch.setattr(rich, "get_console", lambda: terminal)
        return inspect_run(run, open_split(config.data, "val"), images=3)


def test_inspect_run_scores_are_those_of_an_evaluation(config, inspection):
    reference = score_run(fresh_run(config), "val")
    assert repr({key: inspection.scores[key] for key in reference}) == repr(reference)  # repr: NaN equals NaN


@pytest.mark.parametrize("parallel", [pytest.param("pmap", marks=pytest.mark.slow), "shard_map"])
def test_inspect_run_counts_are_equal_in_all_mappings(config, inspection, parallel):
    config = config.copy_and_resolve_references()
    config.parallel = parallel
    mapped = inspect_run(fresh_run(config), open_split(config.data, "val"), images=0)
    for key in ("confusion", "mean_iou_per_image", "images"):
        assert mapped.scores[key] == inspection.scores[key]
    assert mapped.scores["average_precision"] == pytest.approx(inspection.scores["average_precision"], abs=1e-6)
    assert mapped.reliability["count"] == pytest.approx(inspection.reliability["count"], abs=5)
    assert (mapped.best, mapped.worst) == ((), ())


def test_inspect_run_compiles_one_program_for_batches_and_one_for_images(inspection, traced):
    assert [shape[0] for shape in traced] == [4, 1]


def test_inspect_run_shows_its_progress_on_a_terminal(inspection, terminal):
    printed = terminal.file.getvalue()
    assert 0 < printed.find("compiling…") < printed.find("predicting the shown images")


def test_inspect_run_counts_every_valid_pixel_once(inspection):
    pixels = np.sum(inspection.scores["confusion"])
    assert np.sum(inspection.reliability["count"]) == pixels
    assert inspection.risk_coverage["entropy"]["coverage"][-1] == 1
    assert inspection.risk_coverage["entropy"]["risk"][-1] == pytest.approx(1 - inspection.scores["pixel_accuracy"])


def test_inspect_run_shows_the_best_and_the_worst_images_by_mean_iou(inspection):
    shown = [*inspection.best, *inspection.worst[::-1]]
    assert len({one.name for one in shown}) == 6  # all of them
    scores = []
    for one in shown:
        matrix = metrics.confusion_matrix(one.truth, one.prediction, 2, where=one.truth != 255)
        scores.append(metrics.segmentation_scores(np.asarray(matrix))["mean_iou"])
    np.testing.assert_allclose([one.mean_iou for one in shown], scores, rtol=1e-12)
    worst = [one.mean_iou for one in inspection.worst]
    assert worst == sorted(worst)
    assert max(worst) <= min(one.mean_iou for one in inspection.best)


def test_inspect_run_shows_each_image_with_its_own_pixels_and_uncertainties(config, inspection):
    source = open_split(config.data, "val")
    indices = {source.name(i): i for i in range(len(source))}
    for one in (*inspection.best, *inspection.worst):
        example = source[indices[one.name]]
        np.testing.assert_array_equal(one.image, example["image"])
        np.testing.assert_array_equal(one.truth, example["label"])
        assert one.uncertainties["entropy"].shape == one.truth.shape
        np.testing.assert_allclose(one.uncertainties["index"], indices[one.name] + 1, rtol=1e-5)


@pytest.mark.slow
def test_inspect_run_shift_scores_are_those_of_an_evaluation_of_corrupted_images(config, monkeypatch):
    monkeypatch.setattr(run_page, "CORRUPTIONS", ("contrast",))
    run = fresh_run(config)
    inspection = inspect_run(run, open_split(config.data, "val"), images=0, severity=5)
    shifted, corrupted = inspection.shift["contrast"], score_run(run, "val", ("contrast", 5))
    assert shifted["confusion"] == corrupted["confusion"] != inspection.scores["confusion"]
    np.testing.assert_allclose(shifted["pixel_loss"], corrupted["pixel_loss"], rtol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes five images of two sizes with four classes and some void; returns their folder."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("folder")
    for split in ("train", "val"):
        for i in range(5):
            size = (40, 50) if i % 2 else (30, 60)
            image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
            mask = np.kron(rng.choice([0, 1, 2, 3, 255], (size[0] // 10, size[1] // 10)), np.ones((10, 10)))
            for kind, pixels in (("images", image), ("masks", mask.astype(np.uint8))):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(root / split / kind / f"{i}.png"), pixels)
    return root


@pytest.fixture(scope="module")
def of_folder(folder):
    """Returns the pass over the folder, and the labels and probabilities of its pixels, void left out."""
    config = defaults()
    config.data.name, config.data.manual_dir, config.data.class_names = "folder", str(folder), ("a", "b", "c", "d")
    config.data.unseen_classes = ("d",)
    config.data.size, config.data.workers = (32, 48), 0
    config.model.width, config.model.depth, config.model.padding = 4, 1, "zeros"
    config.training.global_batch = 4
    run, source = fresh_run(config), open_split(config.data, "val", mark_unseen=True)
    inspection = inspect_run(run, source, images=1)
    predict, truth, scores = run.predictor(probabilities=True), [], []
    for example in (source[i] for i in range(5)):
        label = example["label"]
        truth.append(label[label != VOID])
        scores.append(predict(example["image"]).probabilities[label != VOID].astype(float))
    return inspection, np.concatenate(truth), np.concatenate(scores)


def test_inspect_run_average_precision_of_three_classes_and_two_image_sizes(of_folder):
    inspection, truth, scores = of_folder
    assert inspection.best[0].truth.shape in ((40, 50), (30, 60))
    assert list(inspection.precision_recall) == ["a", "b", "c"]
    known = truth != UNSEEN
    for c in range(3):
        expected = average_precision_score(truth[known] == c, scores[known, c])
        assert inspection.scores["average_precision_per_class"][c] == pytest.approx(expected, abs=2e-3)


def test_inspect_run_detection_of_an_unseen_class(of_folder):
    inspection, truth, scores = of_folder
    unknown, found = truth == UNSEEN, inspection.scores["unknown"]
    assert (found["pixels"], found["share"]) == (unknown.sum(), unknown.mean())
    expected = average_precision_score(unknown, 1 - scores.max(axis=-1))
    assert found["max_probability"]["average_precision"] == pytest.approx(expected, abs=2e-3)
    assert np.sum(inspection.scores["confusion"]) == np.sum(inspection.reliability["count"]) == (~unknown).sum() > 0


def ranked(matrices):
    return run_page._image_scores(np.array(matrices), np.arange(len(matrices)))


def test_best_and_worst_leave_out_an_image_of_void():
    matrices = np.random.default_rng(0).integers(0, 50, (60, 3, 3))
    matrices[10] = 0
    scores = [metrics.segmentation_scores(matrix)["mean_iou"] for matrix in matrices]
    order = [i for i in np.argsort(scores) if i != 10]
    best, worst = best_and_worst(ranked(matrices), 2)
    assert [one.index for one in worst] == order[:2]
    assert [one.index for one in best] == order[:-3:-1]


def test_best_and_worst_put_an_image_of_one_class_last():
    best, _ = best_and_worst(ranked([[[9, 0], [0, 0]], [[5, 1], [1, 2]], [[1, 8], [3, 0]]]), 1)
    assert [one.index for one in best] == [1]


def test_best_and_worst_show_no_image_twice():
    best, worst = best_and_worst(ranked([[[5, 1], [1, 2]], [[1, 8], [3, 0]]]), 4)
    assert ([one.index for one in worst], best) == ([1, 0], [])
