"""Targets and losses of a detector: equal to torchvision's, the same on all devices, finite for every γ."""

import inspect
import json
import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segjax import boxes, losses
from segjax.collectives import pmean

GOLDEN = Path(__file__).parent / "golden"
CASE = runpy.run_path(str(GOLDEN / "retinanet.py"))
GIVEN, EXPECTED = CASE["drawn"](), json.loads((GOLDEN / "retinanet.json").read_text())
ANCHORS, CLASSES = boxes.anchors(CASE["IMAGE"]), CASE["CLASSES"]
TRUTH = [GIVEN[name] for name in ("boxes", "classes", "where")]
UNIT = np.array([[0, 0, 8, 8], [20, 0, 28, 8], [2, 0, 10, 8]], np.float32)  # IoU of first and last: 0.6
NO_BOX = np.zeros((1, 0, 4), np.float32), np.zeros((1, 0), np.int32)
# Compiled whole, since each operation outside of jit is a program of its own.
TARGETS_OF = jax.jit(losses.anchor_targets, static_argnames=("num_classes", "positive", "negative"))
BOX_LOSS = jax.jit(losses.box_loss, static_argnames="beta")


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def targets():
    return jax.jit(lambda found, classes, where: losses.anchor_targets(ANCHORS, found, classes, CLASSES, where=where))(
        *TRUTH
    )


def retinanet_loss(outputs, truth, **options):
    """Returns `losses.retinanet_loss` of `(logits, offsets)`, with the box loss of torchvision's β = 1."""
    found, classes, where = truth
    targets = losses.anchor_targets(ANCHORS, found, classes, CLASSES, where=where)
    return losses.retinanet_loss(*outputs, targets, **({"beta": 1.0} | options))


def with_gradients(outputs, truth, **options):
    """Returns the losses, and the gradients of their total by `outputs`."""

    def total(outputs):
        found = retinanet_loss(outputs, truth, **options)
        return found.total, found

    (_, found), gradients = jax.value_and_grad(total, has_aux=True)(outputs)
    return found, gradients


OUTPUTS = (GIVEN["logits"], GIVEN["offsets"])


def test_retinanet_loss_and_gradients_equal_torchvision_per_image():
    images = jax.tree.map(lambda x: jnp.asarray(x)[:, None], (OUTPUTS, TRUTH))
    (_, classes, offsets), gradients = jax.jit(jax.vmap(with_gradients))(*images)
    norms = [jnp.sqrt((x**2).sum(axis=(1, 2, 3))) for x in gradients]
    names = ("classification", "smooth_l1", "cls_logits gradient", "bbox_regression gradient")
    for name, values in zip(names, (classes, offsets, *norms), strict=True):
        np.testing.assert_allclose(values, [row[name] for row in EXPECTED], rtol=2e-5, err_msg=name)


def test_retinanet_loss_divides_by_the_matched_anchors_of_the_batch(targets):
    loss = jax.jit(partial(losses.retinanet_loss, gamma=0.5, alpha=0.75, box_weight=3.0))(*OUTPUTS, targets)
    focal = jax.jit(partial(losses.sigmoid_focal_loss, gamma=0.5, alpha=0.75))
    per_logit, per_box = jax.device_get((focal(OUTPUTS[0], targets.classes), BOX_LOSS(OUTPUTS[1], targets.offsets)))
    count = sum(row["matched"] for row in EXPECTED)
    np.testing.assert_allclose(loss.class_loss, per_logit[np.asarray(targets.where)].sum() / count, rtol=1e-5)
    np.testing.assert_allclose(loss.box_loss, per_box[np.asarray(targets.matched)].sum() / count, rtol=1e-5)
    np.testing.assert_allclose(loss.total, loss.class_loss + 3 * loss.box_loss, rtol=1e-6)


def test_retinanet_loss_of_images_without_boxes_is_the_sum_over_the_background():
    targets = TARGETS_OF(UNIT, *NO_BOX, 2)
    loss = jax.jit(losses.retinanet_loss)(jnp.zeros((1, 3, 2)), jnp.ones((1, 3, 4)), targets)
    expected = 6 * 0.75 * 0.25 * np.log(2)  # 6 logits of p = ½
    np.testing.assert_allclose(loss, (expected, expected, 0), rtol=1e-6)


def test_retinanet_loss_ignores_nan_outputs_of_ignored_anchors():
    """Anchor 2 overlaps the box with IoU 0.6, between the thresholds."""
    targets = TARGETS_OF(UNIT, UNIT[None, :1], np.array([[1]]), 2, positive=0.7, negative=0.5)
    assert targets.where.tolist() == [[True, True, False]]
    outputs = np.zeros((1, 3, 2), np.float32), np.zeros((1, 3, 4), np.float32)
    outputs[0][0, 2] = outputs[1][0, 1:] = np.nan
    value, gradients = jax.jit(jax.value_and_grad(lambda x: losses.retinanet_loss(*x, targets).total))(outputs)
    assert np.isfinite(value)
    assert not np.asarray(gradients[0])[0, 2].any()
    assert not np.asarray(gradients[1])[0, 1:].any()


def test_anchor_targets_match_and_ignore_as_many_anchors_as_torchvision(targets):
    assert targets.matched.sum(axis=1).tolist() == [row["matched"] for row in EXPECTED]
    assert (~targets.where).sum(axis=1).tolist() == [row["ignored"] for row in EXPECTED]


def test_box_loss_approaches_the_absolute_error_of_torchvision(targets):
    per_box = BOX_LOSS(OUTPUTS[1], targets.offsets, beta=1e-6, where=targets.matched)
    expected = [row["l1"] * row["matched"] for row in EXPECTED]
    np.testing.assert_allclose(per_box.sum(axis=1), expected, rtol=1e-5)


def test_box_loss_masked_nan_has_gradient_0():
    offsets = jnp.array([[jnp.nan, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
    where = jnp.array([False, True])
    gradient = jax.jit(jax.grad(lambda x: losses.box_loss(x, jnp.zeros((2, 4)), beta=0.5, where=where).sum()))(offsets)
    np.testing.assert_array_equal(gradient, [[0, 0, 0, 0], [1, 0, 0, 0]])


def test_box_loss_bfloat16_is_widened():
    offsets = jnp.full((2, 4), 300, jnp.bfloat16)
    found = BOX_LOSS(offsets, jnp.zeros((2, 4), jnp.bfloat16), beta=1.0)
    assert found.dtype == jnp.float32
    assert found.tolist() == [1198.0, 1198.0]  # 4 · (300 - 1 / 2)


@jax.jit
def for_every_gamma(outputs, gammas):
    return jax.vmap(lambda gamma: with_gradients(outputs, TRUTH, gamma=gamma))(gammas)


@pytest.mark.parametrize("value", [1e4, -1e4, 0.0])
def test_retinanet_loss_and_gradients_are_finite_for_every_gamma(value):
    outputs = jax.tree.map(lambda x: jnp.full_like(x, value), OUTPUTS)
    gammas = jnp.array([0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0])
    found = for_every_gamma(outputs, gammas)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_anchor_targets_ignore_between_the_thresholds():
    targets = TARGETS_OF(UNIT, UNIT[None, :1], np.array([[1]]), 2, positive=0.7, negative=0.5)
    assert targets.matched.tolist() == [[True, False, False]]
    assert targets.where.tolist() == [[True, True, False]]
    assert targets.classes.tolist() == [[[0, 1], [0, 0], [0, 0]]]


@pytest.mark.parametrize(
    ("found", "where"),
    [
        (np.zeros((1, 0, 4), np.float32), None),
        (np.array([[[0, 0, 8, 8]]], np.float32), np.array([[False]])),
        (np.array([[[0, 0, np.nan, 8]]], np.float32), np.array([[False]])),
        (np.array([[[0, 3, 8, 3]]], np.float32), None),
    ],
    ids=["none", "masked", "masked NaN", "without area"],
)
def test_anchor_targets_without_a_box_are_background(found, where):
    classes = np.full(found.shape[:2], 9, np.int32)
    targets = TARGETS_OF(UNIT, found, classes, 2, where=where)
    assert targets.where.all()
    assert not targets.matched.any()
    assert not targets.classes.any()
    assert not targets.offsets.any()


@pytest.mark.parametrize("label", [-1, 2])
def test_anchor_targets_unmasked_class_outside_the_classes_gives_nan(label):
    targets = TARGETS_OF(UNIT, UNIT[None, :1], np.array([[label]]), 2)
    loss = jax.jit(losses.sigmoid_focal_loss)(jnp.zeros((1, 3, 2)), targets.classes)
    assert np.isnan(np.asarray(loss)[0, 0]).all()


NOTHING = (  # two classes, three anchors, no box
    jnp.zeros((1, 3, 2)),
    jnp.zeros((1, 3, 4)),
    TARGETS_OF(UNIT, *NO_BOX, 2),
)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (losses.anchor_targets, (UNIT, UNIT, jnp.zeros((1, 3), jnp.int32), 2), r"boxes must be \[batch, boxes, 4\]"),
        (losses.anchor_targets, (UNIT, UNIT[None], jnp.zeros((1, 2), jnp.int32), 2), "classes must have the shape"),
        (losses.box_loss, (jnp.zeros((2, 3)), jnp.zeros((2, 3))), r"offsets must be \[\.\.\., 4\]"),
        (losses.box_loss, (UNIT, UNIT[:2]), "targets must have the shape of offsets"),
        (partial(losses.box_loss, beta=0), (UNIT, UNIT), "beta must be finite and more than 0; got 0"),
        (partial(losses.retinanet_loss, box_weight=-1), NOTHING, "box_weight must be at least 0; got -1"),
        (
            losses.retinanet_loss,
            (NOTHING[0][..., :1], *NOTHING[1:]),
            r"logits must have the shape of targets.classes, .1, 3, 2.; got .1, 3, 1.",
        ),
    ],
)
def test_invalid_arguments_are_rejected(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(function)(*arguments)


# Devices: eight images, of which the last device has two without a box


def _four_times():
    outputs, truth = (tuple(np.concatenate([x] * 4) for x in arrays) for arrays in (OUTPUTS, TRUTH))
    truth[2][6:] = False
    return outputs, truth


IMAGES = _four_times()


def _step(axis_name):
    """Returns the step of the training loop: global losses, and the gradients by parameters that all devices share."""

    def step(scales, outputs, truth):
        def total(scales):
            scaled = [scale * x for scale, x in zip(scales, outputs, strict=True)]
            found = retinanet_loss(scaled, truth, axis_name=axis_name)
            return found.total, found

        (_, found), gradients = jax.value_and_grad(total, has_aux=True)(scales)
        return found, pmean(gradients, axis_name)

    return step


SCALES = (jnp.float32(1), jnp.float32(0.5))


def _mesh(names=("devices",), sizes=(4,)):
    return jax.make_mesh(sizes, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))


def _jit():
    return jax.jit(_step(None))(SCALES, *jax.device_put(IMAGES, NamedSharding(_mesh(), PartitionSpec("devices"))))


def _pmap():
    split = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), IMAGES)
    found = jax.pmap(_step("devices"), axis_name="devices", in_axes=(None, 0, 0))(SCALES, *split)
    return jax.tree.map(lambda x: x[0], found)


def _shard_map():
    names = ("hosts", "devices")
    specs = (PartitionSpec(), PartitionSpec(names), PartitionSpec(names))
    return jax.jit(jax.shard_map(_step(names), mesh=_mesh(names, (2, 2)), in_specs=specs, out_specs=PartitionSpec()))(
        SCALES, *IMAGES
    )


@pytest.fixture(scope="module")
def one_device():
    return jax.jit(_step(None))(SCALES, *IMAGES)


@pytest.mark.parametrize("mapped", [_jit, pytest.param(_pmap, marks=pytest.mark.slow), _shard_map])
def test_retinanet_loss_and_gradients_are_those_of_one_device(mapped, one_device):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), mapped(), one_device)
