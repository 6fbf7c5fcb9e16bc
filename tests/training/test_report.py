"""One pass over a split: its scores are the evaluation's, its pictures are the images that it names."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from segjax import metrics, report
from segjax.data import label_set, open_split
from segjax.report import _ImageRanking, inspect_run
from segjax.trained_run import TrainedRun, score_run
from segjax.training import defaults
from segjax.training.train_step import init_state, make_model


def fresh_run(config):
    """A run that has not trained: what is counted is no better, and no other."""
    labels = label_set(config.data)
    model = make_model(config, labels.num_classes, None if config.parallel == "jit" else "data")
    return TrainedRun(None, config, model, init_state(config, model), labels)


@pytest.fixture(scope="module")
def config(config):
    config = config.copy_and_resolve_references()
    config.training.global_batch, config.model.dropout = 4, "analytic"
    config.seed = 3  # of those heads whose class is not one and the same everywhere
    return config


@pytest.fixture(scope="module")
def reference(config):
    return score_run(fresh_run(config), "val")


@pytest.fixture(scope="module")
def traced():
    """One entry each time that a program with uncertainties was traced."""
    return []


@pytest.fixture(scope="module")
def found(config, traced):
    def places(variables, features, examples, **kinds):
        traced.append(features.shape)
        return {"place": (features[..., 0] * 0) + examples[:, None, None] + 1}

    run = fresh_run(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "head_uncertainty_maps", places)
        return inspect_run(run, open_split(config.data, "val"), images=3)


def test_the_scores_are_those_of_an_evaluation(found, reference):
    same = {key: found.scores[key] for key in reference}
    assert repr(same) == repr(reference)  # NaN and all


@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
def test_the_mappings_count_the_same(config, found, parallel):
    config = config.copy_and_resolve_references()
    config.parallel = parallel
    mapped = inspect_run(fresh_run(config), open_split(config.data, "val"), images=0)
    for key in ("confusion", "mean_iou_per_image", "images"):
        assert mapped.scores[key] == found.scores[key]
    assert mapped.scores["average_precision"] == pytest.approx(found.scores["average_precision"], abs=1e-6)
    assert mapped.reliability["count"] == pytest.approx(found.reliability["count"], abs=5)
    assert (mapped.best, mapped.worst) == ((), ())


def test_the_pass_is_one_program_and_the_pictures_are_another(found, traced):
    assert [shape[0] for shape in traced] == [4, 1]  # a batch of all devices, and an image


def test_every_kept_pixel_is_counted_once(found):
    pixels = np.sum(found.scores["confusion"])
    assert np.sum(found.reliability["count"]) == pixels
    assert found.risk_coverage["entropy"]["coverage"][-1] == 1
    assert found.risk_coverage["entropy"]["risk"][-1] == pytest.approx(1 - found.scores["pixel_accuracy"])


def test_the_images_shown_are_the_best_and_the_worst_by_their_own_mean_iou(found):
    shown = [*found.best, *found.worst[::-1]]
    assert len({one.name for one in shown}) == 6  # all of them
    scores = []
    for one in shown:
        matrix = metrics.confusion_matrix(one.truth, one.prediction, 2, where=one.truth != 255)
        scores.append(metrics.segmentation_scores(np.asarray(matrix))["mean_iou"])
    np.testing.assert_allclose([one.mean_iou for one in shown], scores, rtol=1e-12)
    worst = [one.mean_iou for one in found.worst]
    assert worst == sorted(worst)
    assert max(worst) <= min(one.mean_iou for one in found.best)


def test_an_image_is_shown_with_its_own_pixels_and_uncertainties(config, found):
    source = open_split(config.data, "val")
    places = {source.name(i): i for i in range(len(source))}
    for one in (*found.best, *found.worst):
        example = source[places[one.name]]
        np.testing.assert_array_equal(one.image, example["image"])
        np.testing.assert_array_equal(one.truth, example["label"])
        assert one.uncertainties["entropy"].shape == one.truth.shape
        np.testing.assert_allclose(one.uncertainties["place"], places[one.name] + 1, rtol=1e-5)
    assert found.scales == pytest.approx({"entropy": np.log(2), "place": 6})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images of two sizes with three classes and some void."""
    import cv2

    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("folder")
    for split in ("train", "val"):
        for i in range(5):
            size = (40, 50) if i % 2 else (30, 60)
            image, mask = (
                rng.integers(0, 256, (*size, 3)).astype(np.uint8),
                np.kron(rng.choice([0, 1, 2, 255], (size[0] // 10, size[1] // 10)), np.ones((10, 10))),
            )
            for part, pixels in (("images", image), ("masks", mask.astype(np.uint8))):
                (root / split / part).mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(root / split / part / f"{i}.png"), pixels)
    return root


def test_many_classes_and_sizes_are_ranked_each_class_against_all_others(folder):
    config = defaults()
    config.data.name, config.data.manual_dir, config.data.class_names = "folder", str(folder), ("a", "b", "c")
    config.data.size, config.data.workers = (32, 48), 0
    config.model.width, config.model.depth, config.model.padding = 4, 2, "zeros"
    config.training.global_batch = 4
    run, source = fresh_run(config), open_split(config.data, "val")
    found = inspect_run(run, source, images=1)
    assert found.best[0].truth.shape in ((40, 50), (30, 60))
    assert list(found.precision_recall) == ["a", "b", "c"]
    predict, truth, scores = run.predictor(probabilities=True), [], []
    for example in (source[i] for i in range(5)):
        label = example["label"]
        truth.append(label[label != 255])
        scores.append(predict(example["image"]).probabilities[label != 255].astype(float))
    truth, scores = np.concatenate(truth), np.concatenate(scores)
    for c in range(3):
        expected = average_precision_score(truth == c, scores[:, c])
        assert found.scores["average_precision_per_class"][c] == pytest.approx(expected, abs=2e-3)


def test_what_is_kept_of_the_images_does_not_grow():
    rng, each = np.random.default_rng(0), _ImageRanking(2)
    matrices = rng.integers(0, 50, (60, 3, 3))
    matrices[10] = 0  # nothing but void
    for begun in range(0, 60, 4):
        each.add(begun, matrices[begun : begun + 4])
    scores = [metrics.segmentation_scores(matrix)["mean_iou"] for matrix in matrices]
    order = [i for i in np.argsort(scores) if i != 10]
    best, worst = each.best_and_worst()
    assert [place for place, _ in worst] == order[:2]
    assert [place for place, _ in best] == order[:-3:-1]
    assert len(each._best) + len(each._worst) <= 6
    assert each.sums["mean_iou_per_image"][1] == 59


def test_an_image_of_one_class_alone_is_no_best_one_while_there_is_another():
    each = _ImageRanking(1)
    each.add(0, np.array([[[9, 0], [0, 0]], [[5, 1], [1, 2]], [[1, 8], [3, 0]]]))
    assert [place for place, _ in each.best_and_worst()[0]] == [1]


def test_of_few_images_none_is_shown_twice():
    each = _ImageRanking(4)
    each.add(0, np.array([[[5, 1], [1, 2]], [[1, 8], [3, 0]]]))
    best, worst = each.best_and_worst()
    assert ([place for place, _ in worst], best) == ([1, 0], [])
