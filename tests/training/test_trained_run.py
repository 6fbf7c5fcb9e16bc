import json
import re

import cv2
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from etils import epath

from segjax import losses
from segjax.data import label_set
from segjax.data.labels import LABEL_SETS, VOID
from segjax.export import lower_network
from segjax.inference import PredictOptions, Predictor, classify, predict_logits, probabilities
from segjax.reporting import inspect_run
from segjax.trained_run import (
    TrainedRun,
    chosen_threshold,
    combine,
    facts_of,
    find_class,
    head_rate,
    load_run,
    model_of,
    score_run,
)
from segjax.training import defaults, open_split
from segjax.training.config import ConfigError, from_leaves, leaves
from segjax.training.detection import make_predictor
from segjax.training.fields import DETECTORS, FIELDS, NETWORKS
from segjax.training.network import make_model, preprocessing_of
from segjax.training.objective import hparams_from_config
from segjax.training.segmentation import make_eval_step
from segjax.training.segmentation import scores as evaluation_scores
from segjax.training.train_step import init_state


def test_eval_step_counts_every_labelled_pixel_at_native_resolution(parts, batch):
    config, model, state = parts
    data = batch(examples=3)
    sizes = np.array([[40, 56], [30, 56], [40, 20]], np.int32)
    for label, (height, width) in zip(data["label"], sizes, strict=True):
        label[height:], label[:, width:] = 255, 255
    shown = np.array([True, True, False])
    inputs = {"image": data["image"], "label": data["label"], "size": sizes, "where": shown}
    counts = jax.jit(make_eval_step(config, model, 2, None))(state, inputs, hparams_from_config(config))
    labelled = int((data["label"][shown] != 255).sum())
    assert int(counts["confusion"].sum()) == labelled
    assert sum(int(c.sum()) for c in jax.tree.leaves(counts["scores"])) == labelled
    assert counts["confusion"][1].sum() == (data["label"][shown] == 1).sum()


@pytest.mark.parametrize("normalizer", ["valid", "positives"])
def test_eval_step_pixel_loss(parts, batch, normalizer):
    config, model, state = parts
    config.objective.normalizer = normalizer
    data = batch(examples=2)
    inputs = {"image": data["image"], "label": data["label"], "size": np.tile(np.int32([40, 56]), (2, 1))}
    counts = jax.jit(make_eval_step(config, model, 2, None))(
        state, inputs | {"where": np.array([True, True])}, hparams_from_config(config)
    )
    preprocessing = preprocessing_of(config, 2)
    logits = predict_logits(model, state.variables, jnp.asarray(data["image"]), inputs["size"], preprocessing)[..., 0]
    labels, where = data["label"].astype(np.int32), data["label"] != 255
    loss = np.asarray(losses.sigmoid_focal_loss(logits, labels, gamma=config.objective.gamma, where=where))
    denominator = (labels == 1).sum() if normalizer == "positives" else where.sum()
    assert evaluation_scores(jax.device_get(counts))["pixel_loss"] == pytest.approx(loss.sum() / denominator, rel=1e-5)


def test_classify_one_logit_and_many():
    assert classify(jnp.array([[[-1.0], [2.0]]]), 2).tolist() == [[0, 1]]
    assert classify(jnp.array([[[0.0, 3.0, 1.0]]]), 3).tolist() == [[1]]
    assert classify(jnp.array([[[0.0, 3.0, 9.0]]]), 2).tolist() == [[1]]  # the last is void


def test_predictor_never_predicts_void(tiny, batch):
    tiny.objective.loss, tiny.objective.void = "softmax_cross_entropy", "class"
    tiny.model.prior = (0.01, 0.01, 0.98)  # void is by far the likeliest
    model = make_model(tiny, 2)
    run = TrainedRun(None, tiny, model, init_state(tiny, model), label_set(tiny.data))
    mask = run.predictor()(batch(examples=1)["image"][0]).mask
    assert set(np.unique(mask)) <= {0, 1}


def test_variables_are_the_exponential_moving_average_if_there_is_one(tiny):
    tiny.training.ema_decay = 0.9
    model = make_model(tiny, 2)
    state = init_state(tiny, model)
    other = jax.tree.map(lambda p: p + 1, state.params)
    assert state.variables["params"] is state.ema["params"]
    assert state.replace(params=other).variables["params"] is state.ema["params"]


def test_probabilities_of_one_logit_are_sigmoid_and_complement():
    logit = np.array([-80.0, -1, 0, 2], np.float32)
    p = np.asarray(probabilities(jnp.asarray(logit).reshape(1, 1, 4, 1), 2))[0, 0]
    np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-logit.astype(float))), rtol=1e-6)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)


def test_probabilities_leave_out_the_void_output():
    p = probabilities(jnp.log(jnp.array([0.1, 0.3, 0.6])).reshape(1, 1, 1, 3), 2)
    np.testing.assert_allclose(p[0, 0, 0], [0.25, 0.75], rtol=1e-6)


def test_predictor_gives_the_masks_that_evaluation_scores(tiny, tmp_path):
    """The scenes are twice as large as the network's input: resized on the device there and on the host here."""
    tiny.model.prior = ()
    model = make_model(tiny, 2)
    run = TrainedRun(epath.Path(tmp_path), tiny, model, init_state(tiny, model), label_set(tiny.data))
    predict = run.predictor()
    source, confusion = open_split(tiny.data, "val"), np.zeros((2, 2), int)
    for i in range(len(source)):
        label = source[i]["label"]
        np.add.at(confusion, (label[label != VOID], predict(source[i]["image"]).mask[label != VOID]), 1)
    assert confusion.tolist() == score_run(run, "val")["confusion"]
    assert confusion.sum(0).min() > 100


@pytest.mark.parametrize(("class_index", "share"), [(0, 0.997), (1, 0.006)])
def test_chosen_threshold_reaches_the_precision(tiny, tmp_path, class_index, share):
    tiny.model.prior = ()
    model = make_model(tiny, 2)
    run = TrainedRun(epath.Path(tmp_path), tiny, model, init_state(tiny, model), label_set(tiny.data))
    fields, line = chosen_threshold(run, None, share, class_index)
    predict = run.predictor(PredictOptions(tuple(tiny.data.size), **fields))
    source, found, right, there = open_split(tiny.data, "val"), 0, 0, 0
    for example in (source[i] for i in range(len(source))):
        chosen, label = predict(example["image"]).mask == class_index, example["label"]
        found, right = found + (chosen & (label != VOID)).sum(), right + (chosen & (label == class_index)).sum()
        there += (label == class_index).sum()
    printed = re.search(r"its precision is (.*), its recall (.*)$", line)
    assert (right / found, right / there) == pytest.approx([float(value) for value in printed.groups()], abs=6e-4)
    assert line.startswith(run.label_set.names[class_index])
    assert right / found >= share * (1 - 1e-3)


def test_find_class_of_an_unseen_class(tiny):
    tiny.data.name, tiny.data.unseen_classes = "road_debris_scene", ("debris",)
    run = TrainedRun(epath.Path("runs/a"), tiny, None, None, label_set(tiny.data))
    assert find_class(run, "sky") == 3
    with pytest.raises(ConfigError, match=r"--class: expected one of road, .*; got 'debris', which the training left"):
        find_class(run, "debris")


def test_chosen_threshold_of_many_classes_needs_a_class(tiny):
    run = TrainedRun(epath.Path("runs/a"), tiny, None, None, LABEL_SETS["road_debris_scene"])
    with pytest.raises(
        ConfigError,
        match=r"--threshold and --at_precision: add --class=NAME, one of road, marking, verge, sky, debris$",
    ):
        chosen_threshold(run, 0.3, None, None)
    fields, _ = chosen_threshold(run, 0.5, None, 3)
    assert fields == {"threshold": 0.0, "positive": 3}
    assert chosen_threshold(run, None, None, None) == ({}, "")


@pytest.mark.parametrize(
    ("dropout", "rate", "expected"), [("sampled", None, 0.15), ("none", 0.3, 0.3), ("none", None, None)]
)
def test_head_rate_is_that_of_training_or_the_given_one(tiny, dropout, rate, expected):
    tiny.model.dropout, tiny.model.dropout_rate = dropout, 0.15
    run = TrainedRun(epath.Path("runs/a"), tiny, None, None, label_set(tiny.data))
    if expected is not None:
        assert head_rate(run, rate, 3) == expected
    else:
        with pytest.raises(ConfigError, match=r"--samples=3: runs/a was trained without dropout .*--rate=0.2"):
            head_rate(run, rate, 3)


def test_head_rate_refuses_passes_without_dropout(tiny):
    run = TrainedRun(epath.Path("runs/a"), tiny, None, None, label_set(tiny.data))
    with pytest.raises(
        ConfigError, match=r"--passes=3: runs/a was trained without dropout deep in the network .*--samples"
    ):
        head_rate(run, None, 0, 3)
    tiny.model.deep_dropout = 1
    assert head_rate(run, None, 0, 3) == tiny.model.dropout_rate


@pytest.mark.parametrize(
    ("names", "seeds", "letterbox"),
    [
        pytest.param(("a", "b"), (0,), True, id="letterboxed"),
        pytest.param(("a", "b"), (0,), False, id="2 classes", marks=pytest.mark.slow),
        pytest.param(("a", "b", "c"), (0,), False, id="3 classes", marks=pytest.mark.slow),
        pytest.param(("a", "b"), (0, 1), True, id="ensemble", marks=pytest.mark.slow),
    ],
)
def test_evaluate_predict_report_and_export_give_the_same_mask(names, seeds, letterbox, tmp_path):
    rng = np.random.default_rng(0)
    for split, sizes in (("train", [(40, 50)]), ("val", [(40, 50), (61, 37), (20, 90), (32, 48)])):
        for part in ("images", "masks"):
            (tmp_path / split / part).mkdir(parents=True)
        for i, size in enumerate(sizes):
            image = cv2.GaussianBlur(rng.integers(0, 256, (*size, 3)).astype(np.uint8), (0, 0), 3)
            mask = rng.integers(0, len(names), size).astype(np.uint8)
            assert cv2.imwrite(str(tmp_path / split / "images" / f"{i}.png"), image * 3)
            assert cv2.imwrite(str(tmp_path / split / "masks" / f"{i}.png"), mask)
    config = defaults()
    config.data.name, config.data.manual_dir, config.data.class_names = "folder", str(tmp_path), names
    config.data.size, config.data.workers, config.training.global_batch = (32, 48), 0, 4
    config.data.letterbox = letterbox
    config.model.width, config.model.depth, config.model.padding, config.model.prior = 4, 2, "zeros", ()
    labels = label_set(config.data)
    model = make_model(config, len(names), None)
    runs = []
    for config.seed in seeds:
        runs.append(TrainedRun(epath.Path(tmp_path), config, model, init_state(config, model), labels))
    run = combine(runs) if len(runs) > 1 else runs[0]
    source, predict = open_split(config.data, "val"), run.predictor()
    examples = [source[i] for i in range(4)]
    masks = {one["name"]: predict(one["image"]).mask for one in examples}

    confusion = sum(
        np.bincount(
            len(names) * one["label"].astype(int).ravel() + masks[one["name"]].ravel(), minlength=len(names) ** 2
        )
        for one in examples
    )
    assert score_run(run, "val")["confusion"] == confusion.reshape(len(names), -1).tolist()
    assert (confusion.reshape(len(names), -1).sum(0) > 50).all()  # of each class

    shown = inspect_run(run, source, images=4)
    shown = {one.name: one.prediction for one in (*shown.best, *shown.worst)}
    jaxtyping.config.update("jaxtyping_disable", True)  # a symbolic size is not an `int`
    try:
        exported = lower_network(run)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    for one in examples:
        np.testing.assert_array_equal(shown[one["name"]], masks[one["name"]])
        np.testing.assert_array_equal(exported.call(one["image"][None])["mask"][0], masks[one["name"]])


def test_load_run_opens_a_workdir_or_a_checkpoint(trained, run_config):
    latest = load_run(trained.workdir / "checkpoints" / "latest")
    assert int(latest.state.step) == 4
    assert load_run(trained.workdir).label_set.names == latest.label_set.names
    assert load_run(trained.workdir / "checkpoints" / "4").config.model.width == run_config.model.width


def test_predictor_record_depends_on_the_parameters_and_not_on_the_path(trained):
    latest, number, earlier = (
        load_run(trained.workdir / "checkpoints" / step).predictor().record() for step in ("latest", "4", "2")
    )
    assert number == latest
    assert {key for key in latest if latest[key] != earlier[key]} == {"parameters"}


def test_facts_of_contain_the_changes_during_training(trained, tmp_path):
    run = load_run(trained.workdir)
    scores = json.loads((trained.workdir / "scores.json").read_text())
    change = "config.training.steps is now 8; step 4 was trained with 4"
    (tmp_path / "scores.json").write_text(json.dumps(scores | {"changes": [change]}))
    assert facts_of(run._replace(workdir=epath.Path(tmp_path)), "val", scores)["changed during training"] == change
    assert "changed during training" not in facts_of(run, "val", scores)


def test_load_run_of_a_folder_with_a_comma_alone_and_in_a_list(trained, tmp_path):
    (tmp_path / "gamma=2,seed=0").symlink_to(trained.workdir)
    folder = tmp_path / "gamma=2,seed=0" / "checkpoints"
    run = load_run(folder / "latest")
    assert (run.members, run.step) == (1, 4)
    listed = load_run(f"{trained.workdir}/checkpoints/2,{folder / '3'}, {trained.workdir}/checkpoints/4")
    assert listed.step == [2, 3, 4]


def test_load_run_several_become_one_ensemble(trained, batch):
    folder, image = trained.workdir / "checkpoints", batch(1)["image"][0]
    run = load_run(f"{folder}/2, {folder}/4")
    assert (run.members, run.step, run.workdir) == (2, [2, 4], None)
    assert [one["parameters"] for one in run.record()["runs"]] == [
        load_run(folder / step).predictor().record()["parameters"] for step in ("2", "4")
    ]
    image = cv2.resize(image, run.config.data.size[::-1])  # of the network's input: the maps are not resized
    p, *members = (one.predictor(probabilities=True)(image).probabilities for one in (run, *run.runs))
    np.testing.assert_allclose(p, np.mean(members, 0), atol=1e-5)


@pytest.mark.parametrize(("paths", "entry"), [("runs/a,", 2), (",runs/a", 1), ("runs/a, ,runs/b", 2)])
def test_load_run_refuses_an_empty_entry(paths, entry):
    with pytest.raises(ConfigError, match=rf"^{paths}: entry {entry} of the list is empty; remove its comma$"):
        load_run(paths)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.width", 8, r"runs/b and runs/a cannot be combined: config.model.width is 8 and 4; name runs"),
        ("data.mean", (0.5,), r"config.data.mean is \(0.5,\) and \(0.45,\)"),
        ("objective.loss", "softmax_focal", r"the number of outputs for config.objective.loss is 2 and 1"),
        ("seed", 0, "runs/b and runs/a have the same parameters; name different runs"),
    ],
)
def test_combine_refuses_runs_that_do_not_fit(parts, field, value, message):
    config, model, state = parts
    run, other = (
        TrainedRun(epath.Path("runs/a"), config, model, state, label_set(config.data)),
        from_leaves(leaves(config)),
    )
    other.update_from_flattened_dict({field: value})
    second = run._replace(workdir=epath.Path("runs/b"), config=other, model=make_model(other, 2))
    with pytest.raises(ConfigError, match=message):
        combine([run, second])


def another(field):
    """Returns a valid value of a config field that is not its default."""
    if field.choices:
        return next(choice for choice in field.choices if choice != field.default)
    if field.kind is tuple:
        return {str: ("b", "a"), int: (40, 60), float: (0.2, 0.3), tuple: ((1.0, 1000, 2e-3),)}[field.item][
            : field.length or 2
        ]
    default = field.default or 0
    return {bool: lambda: not default, int: lambda: default + 1, float: lambda: default / 2 + 0.1, str: lambda: "b"}[
        field.kind
    ]()


@pytest.mark.parametrize("network", NETWORKS)
def test_predictor_record_changes_with_every_config_field_that_changes_the_mask(network):
    """A new field of a network or of the preprocessing is recorded, unless `Predictor.record` lists it."""

    def record(**changed):
        config = from_leaves(leaves(base) | changed)
        names = label_set(config.data).names
        return Predictor(model_of(config), {}, preprocessing_of(config, len(names))).record() | {"classes": names}

    base = defaults()
    base.data.name, base.data.class_names, base.model.name = "folder", ("a", "b"), network
    data = ("name", "class_names", "multilabel", "channels", "range", "size", "letterbox", "mean", "std")
    expected = {f"data.{name}" for name in data}
    expected |= {f"model.{name}" for name in ("name", "members", "norm", "dtype", *NETWORKS[network][1].values())}
    expected |= {"objective.loss", "objective.void"}  # the number of outputs
    fields = {key: another(field) for key, field in FIELDS.items()}
    fields |= {"data.name": "camvid", "objective.loss": "sigmoid_focal", "objective.background": 1, "model.prior": ()}
    fields |= {
        "model.name": "unet" if network == "fcn" else "fcn",
        "model.pack": 2,
        "model.max_width": 16,
        "model.deep_dropout": 0,
        "model.output_stride": 8 if "plus" in network else 16,
        "data.unseen_classes": (),
        "data.range": (0.0, 4.0),
        "data.mask_colours": (),
        "data.void_colours": (),
    }
    before = record()
    assert {key for key, value in fields.items() if record(**{key: value}) != before} == expected
    more = {"data.class_names": ("a", "b", "c")}
    assert record(**more) != record(**more | {"data.unseen_classes": ("b",)})


@pytest.mark.parametrize("network", DETECTORS)
def test_detector_record_changes_with_every_config_field_that_changes_the_boxes(network):
    def record(**changed):
        config = from_leaves(leaves(base) | changed)
        return make_predictor(config, model_of(config), {}).record()

    base = defaults()
    base.data.name, base.data.class_names = "folder", ("a", "b")
    base.data.box_classes, base.model.name, base.objective.loss = ("a", "b"), network, "sigmoid_focal"
    fields = {k: another(field) for k, field in FIELDS.items() if k not in ("model.name", "model.members")}
    fields |= {"data.box_classes": ("b",), "data.range": (0.0, 4.0), "model.levels": (2, 3, 4, 5)}
    fields |= {"objective.loss": "hinge", "model.prior": (), "model.anchor_scales": (1.0,)}
    fields |= dict.fromkeys(
        (
            "data.unseen_classes",
            "data.mask_colours",
            "data.void_colours",
            "objective.class_weights",
            "objective.class_frequencies",
        ),
        (),
    )
    fields |= {"data.name": "camvid", "data.multilabel": False}
    expected = {f"data.{name}" for name in ("box_classes", "channels", "range", "size", "letterbox", "mean", "std")}
    own = (*DETECTORS[network][1].values(), "anchor_base", "anchor_scales", "anchor_ratios", "norm", "dtype")
    before = record()
    found = {key for key, value in fields.items() if record(**{key: value}) != before}
    assert found == expected | {f"model.{name}" for name in own}


def test_predictor_record_contains_dropout_if_the_mask_depends_on_it(tiny):
    tiny.model.deep_dropout = 2
    model, preprocessing = make_model(tiny, 2), preprocessing_of(tiny, 2)
    options = {"whole": {}, "samples": {"samples": 2}, "passes": {"passes": 2}}
    options = {name: PredictOptions((32, 48), **fields) for name, fields in options.items()}
    records = {name: Predictor(model, {}, preprocessing, each).record() for name, each in options.items()}
    assert "rate" not in records["whole"]
    assert {"rate", "seed"} <= set(records["samples"]) - set(records["whole"])
    assert records["passes"]["network.deep_rate"] == 0.5
    assert "network.deep_rate" not in records["samples"]


def test_load_run_of_another_folder_or_a_damaged_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a run: expected .*config.json"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/config.json: expected the config of a run"):
        load_run(tmp_path)
