"""Boxes: values by hand, equal to torchvision's (`golden/boxes.py`), and equal under every mapping."""

import inspect
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segjax import boxes

IMAGE = (128, 256)
# Compiled whole, since each operation outside of jit is a program of its own.
IOU, MATCH = jax.jit(boxes.iou), jax.jit(boxes.match_anchors)
ENCODE, DECODE = (jax.jit(f, static_argnames="weights") for f in (boxes.encode, boxes.decode))

with np.load(Path(__file__).parent / "golden" / "boxes.npz") as _stored:
    GOLDEN = dict(_stored)


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def grid():
    return jax.jit(partial(boxes.anchors, IMAGE))()


def test_areas_float16_is_widened():
    found = jax.jit(boxes.areas)(jnp.array([[0, 0, 300, 300]], jnp.float16))
    assert found.dtype == jnp.float32
    assert found[0] == 90000


def test_areas_wrong_last_axis():
    with pytest.raises(ValueError, match=r"boxes must be \[\.\.\., 4\]"):
        inspect.unwrap(boxes.areas)(jnp.zeros((2, 5)))


def test_iou_torchvision():
    found = IOU(GOLDEN["code/boxes"], GOLDEN["code/anchors"])
    np.testing.assert_allclose(found, GOLDEN["code/iou"], rtol=1e-6)


def test_iou_crowd_is_share_of_box():
    box, region = jnp.array([[0.0, 0.0, 2.0, 4.0]]), jnp.array([[0.0, 0.0, 9.0, 2.0]] * 2)
    np.testing.assert_allclose(IOU(box, region, crowd=jnp.array([True, False])), [[0.5, 4 / 22]], rtol=1e-6)


def test_iou_empty_box_gradient_is_finite():
    empty = jnp.array([[1.0, 1.0, 1.0, 1.0]])
    value, gradient = jax.jit(jax.value_and_grad(lambda b: boxes.iou(b, empty).sum()))(empty)
    assert value == 0
    assert jnp.isfinite(gradient).all()


def test_iou_inverted_box():
    assert IOU(jnp.array([[4.0, 4.0, 0.0, 0.0]]), jnp.array([[0.0, 0.0, 4.0, 4.0]])).item() == 0


def test_anchors_torchvision(grid):
    np.testing.assert_array_equal(grid, GOLDEN["anchors"])


def test_anchor_counts_any_size():
    size, levels = (37, 50), (2, 5)
    found = jax.jit(lambda: boxes.anchors(size, levels=levels, scales=(1.0,), ratios=(0.5, 1.0)))()
    counts = boxes.anchor_counts(size, levels=levels, per_cell=2)
    assert counts == (2 * 10 * 13, 2 * 2 * 2)
    assert found.shape == (sum(counts), 4)
    np.testing.assert_array_equal(found[-1], [32 - 64, 32 - 64, 32 + 64, 32 + 64])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": 0.1}, "raise base"),
        ({"ratios": (0.0,)}, "ratios must be positive"),
        ({"levels": (-1,)}, "levels must be"),
        ({"levels": ()}, "levels must be"),
        ({"image_size": (16.5, 16)}, r"image_size .* integers of at least 1; got \(16\.5, 16\)"),
        ({"image_size": (16, 16, 3)}, r"image_size must be \(height, width\); got 3 .*image\.shape\[:2\]"),
    ],
)
def test_anchors_invalid(options, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(boxes.anchors)(**{"image_size": (16, 16)} | options)


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("name", ["whole", "fractional"])
def test_match_anchors_torchvision(name, low_quality, grid):
    truth = np.concatenate([GOLDEN[f"match/{name}/boxes"], np.full((3, 4), np.nan, np.float32)])
    match = jax.jit(partial(boxes.match_anchors, low_quality=low_quality))(
        grid, truth, where=jnp.arange(len(truth)) < len(truth) - 3
    )
    np.testing.assert_array_equal(match, GOLDEN[f"match/{name}/low_quality={low_quality}"])


@pytest.mark.parametrize("count", [0, 3])
def test_match_anchors_without_boxes(count):
    match = MATCH(jnp.ones((5, 4)), jnp.ones((count, 4)), where=jnp.zeros(count, bool))
    assert (match == boxes.BACKGROUND).all()


def test_match_anchors_box_that_overlaps_no_anchor():
    match = MATCH(jnp.array([[0.0, 0.0, 4.0, 4.0]]), jnp.array([[8.0, 8.0, 9.0, 9.0]]))
    assert match.tolist() == [boxes.BACKGROUND]


def test_match_anchors_best_for_two_boxes_goes_to_the_larger_overlap():
    far = jnp.array([[0.0, 0.0, 4.0, 2.0], [90.0, 90.0, 94.0, 94.0]])
    match = MATCH(far, jnp.array([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 4.0, 1.0]]))
    assert match.tolist() == [1, boxes.BACKGROUND]


def test_match_anchors_thresholds_out_of_order():
    with pytest.raises(ValueError, match=r"negative and positive must .*negative=0\.6, positive=0\.5"):
        boxes.match_anchors(jnp.ones((1, 4)), jnp.ones((1, 4)), negative=0.6)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_encode_torchvision(weights):
    found = ENCODE(GOLDEN["code/boxes"], GOLDEN["code/anchors"], weights=weights)
    np.testing.assert_allclose(found, GOLDEN[f"code/encoded/{weights[0]:g}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decode_torchvision(weights):
    found = DECODE(GOLDEN["code/offsets"], GOLDEN["code/anchors"], weights=weights)
    np.testing.assert_allclose(found, GOLDEN[f"code/decoded/{weights[0]:g}"], rtol=1e-5, atol=1e-4)


def test_decode_inverts_encode():
    truth, anchors = GOLDEN["code/boxes"], GOLDEN["code/anchors"]
    np.testing.assert_allclose(DECODE(ENCODE(truth, anchors), anchors), truth, atol=1e-3)


def test_encode_masked_box_has_gradient_0():
    anchor, where = jnp.array([[0.0, 0.0, 4.0, 4.0]]), jnp.array([False])
    encode = jax.value_and_grad(lambda b: boxes.encode(b, anchor, where=where).sum())
    value, gradient = jax.jit(encode)(jnp.full((1, 4), 2.0))
    assert (value, *gradient.ravel()) == (0, 0, 0, 0, 0)


def test_decode_huge_delta_gradient_is_finite():
    anchor = jnp.array([[0.0, 0.0, 4.0, 4.0]])
    gradient = jax.jit(jax.grad(lambda d: boxes.decode(d, anchor).sum()))(jnp.full((1, 4), 1e4))
    assert np.isfinite(gradient).all()


def test_clip_traced_size():
    found = jax.jit(boxes.clip)(jnp.array([[-1.0, -1.0, 9.0, 9.0]]), jnp.array([4, 6]))
    np.testing.assert_array_equal(found, [[0, 0, 6, 4]])


def kept(max_detections=200, **options):
    arguments = (GOLDEN[f"nms/{name}"] for name in ("boxes", "scores", "classes"))
    return np.asarray(jax.jit(partial(boxes.nms, max_detections=max_detections))(*arguments, **options))


def test_nms_torchvision():
    expected = GOLDEN["nms/kept"]
    assert 50 < len(expected) < 190
    np.testing.assert_array_equal(kept(), np.pad(expected, (0, 200 - len(expected)), constant_values=-1))


def test_nms_keeps_the_highest_scores():
    np.testing.assert_array_equal(kept(9), GOLDEN["nms/kept"][:9])


def test_nms_masked_box_suppresses_nothing():
    first = GOLDEN["nms/kept"][0]
    where = np.arange(200) != first
    found = kept(where=where)
    assert first not in found
    assert set(GOLDEN["nms/kept"][1:]) <= set(found)


@pytest.mark.parametrize("score", [np.nan, -np.inf])
def test_nms_score_that_is_not_a_number(score):
    scores = jnp.array([score, 0.5], jnp.float32)
    found = jax.jit(partial(boxes.nms, max_detections=3))(
        jnp.array([[0.0, 0.0, 4.0, 4.0]] * 2), scores, jnp.array([0, 0])
    )
    assert found.tolist() == [1, -1, -1]


def test_nms_without_boxes():
    found = jax.jit(partial(boxes.nms, max_detections=2))(jnp.zeros((0, 4)), jnp.zeros(0), jnp.zeros(0, int))
    assert found.tolist() == [-1, -1]


def detect(logits, offsets, anchors, **options):
    options = {"counts": boxes.anchor_counts(IMAGE), "max_candidates": 200, "max_detections": 60} | options
    return boxes.detect(logits, offsets, anchors, jnp.array([IMAGE[0] - 8, IMAGE[1] - 16]), **options)


LOGITS, OFFSETS = GOLDEN["detect/ranks"] / np.float32(2500) - 8, GOLDEN["detect/steps"] / np.float32(32)


def test_detect_torchvision(grid):
    found = jax.jit(detect)(LOGITS, OFFSETS, grid)
    assert found.where.all()
    np.testing.assert_array_equal(found.classes, GOLDEN["detect/labels"])
    np.testing.assert_allclose(found.scores, GOLDEN["detect/scores"], rtol=1e-6)
    np.testing.assert_allclose(found.boxes, GOLDEN["detect/boxes"], rtol=1e-5, atol=1e-4)


def test_detect_unused_places_are_0():
    anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 9.0, 9.0]])
    find = jax.jit(partial(boxes.detect, counts=(1, 1), max_detections=3))
    found = find(jnp.array([[5.0], [jnp.nan]]), jnp.zeros((2, 4)), anchors, jnp.array([16, 16]))
    assert found.where.tolist() == [True, False, False]
    assert not any(np.asarray(x[1:]).any() for x in found)


def test_clip_size_with_channels():
    with pytest.raises(ValueError, match=r"got 3 .*image\.shape"):
        inspect.unwrap(boxes.clip)(jnp.ones((1, 4)), jnp.array([8, 8, 3]))


@pytest.mark.parametrize(
    ("logits", "offsets", "counts", "message"),
    [
        (2, 2, (3, 4), r"counts must add up to the 2 anchors; got \(3, 4\), 7 .*anchor_counts"),
        (1, 2, (1, 1), r"logits .* must have the shape of anchors .*\(2,\); got \(1,\)"),
        (2, 3, (1, 1), r"offsets must have the shape of anchors, \(2, 4\); got \(3, 4\)"),
    ],
)
def test_detect_rows_that_do_not_fit_the_anchors(logits, offsets, counts, message):
    arrays = jnp.ones((logits, 1)), jnp.ones((offsets, 4)), jnp.ones((2, 4))
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(boxes.detect)(*arrays, (8, 8), counts=counts)


# Every mapping of four images to four devices gives the same result.


def _of_batch(logits, offsets, truth, where):
    grid = boxes.anchors((32, 32))
    counts = boxes.anchor_counts((32, 32))
    found = jax.vmap(partial(boxes.detect, counts=counts, max_candidates=50, max_detections=9), (0, 0, None, None))(
        logits, offsets, grid, (32, 32)
    )
    return found, jax.vmap(lambda t, w: boxes.match_anchors(grid, t, where=w))(truth, where)


def _batch():
    rng = np.random.default_rng(0)
    count = sum(boxes.anchor_counts((32, 32)))
    low = rng.integers(0, 16, (4, 3, 2))
    truth = np.concatenate([low, low + rng.integers(4, 16, (4, 3, 2))], axis=-1).astype(np.float32)
    # One image has no box, and one no detection.
    where = np.array([[True] * 3, [True, False, True], [False] * 3, [True] * 3])
    truth[~where] = np.nan
    logits = rng.normal(-3, 2, (4, count, 2)).astype(np.float32)
    logits[1] = -9
    return logits, rng.normal(0, 0.3, (4, count, 4)).astype(np.float32), truth, where


BATCH = _batch()
_SPEC = PartitionSpec("devices")


def _mesh():
    return jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))


def _sharded(check_vma):
    mapped = jax.shard_map(_of_batch, mesh=_mesh(), in_specs=_SPEC, out_specs=_SPEC, check_vma=check_vma)
    return jax.jit(mapped)(*BATCH)


MAPPINGS = {
    "jit": lambda: jax.jit(_of_batch)(*jax.device_put(BATCH, NamedSharding(_mesh(), _SPEC))),
    "pmap": lambda: jax.tree.map(
        lambda x: np.asarray(x).reshape(4, *x.shape[2:]), jax.pmap(_of_batch)(*(x[:, None] for x in BATCH))
    ),
    "shard_map": lambda: _sharded(check_vma=True),
    "shard_map unchecked": lambda: _sharded(check_vma=False),
}


@pytest.fixture(scope="module")
def expected():
    return jax.jit(_of_batch)(*BATCH)


# The last mapping combines what the others test and is left to the slow tier.
@pytest.mark.parametrize(
    "mapping", [name if "unchecked" not in name else pytest.param(name, marks=pytest.mark.slow) for name in MAPPINGS]
)
def test_detect_and_match_anchors_every_mapping(mapping, expected):
    found, match = expected
    assert found.where.sum(axis=1).tolist()[1] == 0 < found.where.sum() < 36
    assert (match[2] == boxes.BACKGROUND).all()
    for one, other in zip(*map(jax.tree.leaves, (MAPPINGS[mapping](), expected)), strict=True):
        np.testing.assert_array_equal(one, other)
