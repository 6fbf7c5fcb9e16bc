"""The scenes of `road_debris`: deterministic, rare debris, correct labels, not solvable by colour."""

import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.tree import DecisionTreeClassifier

from segjax.data.road_debris import SCENE_CLASSES, VOID, scene
from segjax.data.road_scenery import Road, Stream, View

ROAD, MARKING, VERGE, SKY, DEBRIS = (
    SCENE_CLASSES.index(name) for name in ("road", "marking", "verge", "sky", "debris")
)


@pytest.fixture(scope="module")
def scenes():
    drawn = [scene(11, index, height=96, width=128) for index in range(200)]
    return np.stack([one.image for one in drawn]), np.stack([one.label for one in drawn])


def test_scene_is_deterministic():
    first, second = scene(3, 5, height=96, width=128), scene(3, 5, height=96, width=128)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.label, second.label)


@pytest.mark.parametrize("other", [(3, 6), (4, 5), (5, 3)])
def test_scene_differs_by_seed_and_index(other):
    first, second = scene(3, 5, height=96, width=128), scene(*other, height=96, width=128)
    assert np.mean(first.image != second.image) > 0.5
    assert np.mean(first.label != second.label) > 0.01


@pytest.mark.parametrize(
    ("seed", "index", "height", "width", "digest"),
    [
        (0, 0, 96, 128, "60ca930c9cfeb04cd06ad3804f516473617411879f676a938ad285efc8764c3e"),
        (0, 1, 192, 256, "d7f3379af562190252f3caaa5387cfce66b6c967e8d77e08ab9cd6ac19fd3dfb"),
        (7, 123, 64, 96, "c599805ab879847e7fc4d4d1fda2df77ede7f905bbd5c23d0f9a155c8de752c8"),
        (2**63 - 1, 2**40, 96, 160, "928f959d9a058e1e30a4154e24d9368e12de760432a7c43657618699f6d0dee0"),
    ],
)
def test_scene_equals_committed_hashes(seed, index, height, width, digest):
    image, label = scene(seed, index, height=height, width=width)
    assert hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest() == digest, (
        "the generator draws other scenes than the committed ones: scores on road_debris are no longer comparable"
    )


def test_scene_debris_is_half_a_percent_of_the_pixels(scenes):
    assert np.mean(scenes[1] == DEBRIS) == pytest.approx(0.005, abs=0.001)


def test_scene_some_have_no_debris(scenes):
    share = np.mean((scenes[1] == DEBRIS).any(axis=(1, 2)))
    assert 0.75 < share < 0.95


def test_scene_void_is_thin(scenes):
    void = np.mean(scenes[1] == VOID, axis=(1, 2))
    assert 0.01 < void.mean() < 0.03
    assert void.max() < 0.05


def test_scene_labels_are_five_classes_and_void(scenes):
    assert set(np.unique(scenes[1])) == {*range(len(SCENE_CLASSES)), VOID}


def test_scene_debris_touches_only_void_road_and_marking(scenes):
    labels = scenes[1]
    padded = np.pad(labels, ((0, 0), (2, 2), (2, 2)), constant_values=VOID)
    around = [padded[:, r : r + 96, c : c + 128][labels == DEBRIS] for r in range(5) for c in range(5)]
    assert not np.isin(np.stack(around), (VERGE, SKY)).any()


def test_scene_sky_is_above_the_road(scenes):
    rows = np.arange(96)[None, :, None]
    lowest_sky = np.where(scenes[1] == SKY, rows, -1).max(axis=(1, 2))
    highest_road = np.where(scenes[1] == ROAD, rows, 96).min(axis=(1, 2))
    assert (lowest_sky - highest_road).max() <= 6  # the horizon leans
    assert (scenes[1][:, -1, 64] != SKY).all()


def test_scene_is_the_same_at_two_resolutions():
    for index in range(8):
        small, large = scene(2, index, height=96, width=128), scene(2, index, height=192, width=256)
        halved = large.image.reshape(96, 2, 128, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - small.image).mean() < 8.0
        corners = np.stack([large.label[r::2, c::2] for r in (0, 1) for c in (0, 1)])
        assert np.mean((corners == small.label).any(axis=0)) > 0.985
        debris_shares = np.mean(small.label == DEBRIS), np.mean(large.label == DEBRIS)
        assert debris_shares[0] == pytest.approx(debris_shares[1], rel=0.25, abs=3e-4)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (97, 131), (128, 256), (512, 1024)])
def test_scene_any_size(height, width):
    image, label = scene(1, 1, height=height, width=width)
    assert (image.shape, image.dtype) == ((height, width, 3), np.uint8)
    assert (label.shape, label.dtype) == ((height, width), np.uint8)


def _road_pixels(images, labels):
    """Returns features of the road's pixels: colour, and brightness relative to the mean of the scene's road."""
    brightness = images.mean(axis=3)
    level = np.array([b[label == ROAD].mean() for b, label in zip(brightness, labels, strict=True)])
    relative = brightness - level[:, None, None]
    features = np.concatenate([images, relative[..., None]], axis=3)
    kept = np.isin(labels, (ROAD, MARKING, DEBRIS))
    return features[kept] / 50.0, labels[kept] == DEBRIS


def test_scene_colour_alone_does_not_find_debris(scenes):
    images, labels = scenes
    train, truth = _road_pixels(images[:100].astype(np.float64), labels[:100])
    held_out, answers = _road_pixels(images[100:].astype(np.float64), labels[100:])
    classifiers = LogisticRegression(class_weight="balanced"), DecisionTreeClassifier(max_depth=8, min_samples_leaf=20)
    for classifier in classifiers:
        scores = classifier.fit(train[::7], truth[::7]).predict_proba(held_out)[:, 1]
        assert average_precision_score(answers, scores) < 0.10  # chance is 0.01 among the road's pixels
    for darkness in (held_out[:, 3], -held_out[:, 3], np.abs(held_out[:, 3])):
        assert average_precision_score(answers, darkness) < 0.10


def test_scene_background_has_a_wider_brightness_range_than_debris(scenes):
    images, labels = scenes
    features, is_debris = _road_pixels(images.astype(np.float64), labels)
    low, high = np.quantile(features[is_debris, 3], (0.05, 0.95))
    empty = ~(labels == DEBRIS).any(axis=(1, 2))
    background = _road_pixels(images[empty].astype(np.float64), labels[empty])[0][:, 3]
    extreme_debris = 0.05 * np.mean(is_debris)  # share of the road's pixels that are debris and outside of one quantile
    assert np.mean(background < low) > 10 * extreme_debris
    assert np.mean(background > high) > 10 * extreme_debris


@pytest.mark.parametrize(("seed", "index", "name", "value"), [(-1, 0, "seed", "-1"), (0, -7, "index", "-7")])
def test_scene_negative_seed_or_index(seed, index, name, value):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 2\*\*63\), got {value}"):
        scene(seed, index)


def test_scene_too_large_index():
    with pytest.raises(ValueError, match=r"index must be in \[0, 2\*\*63\), got 9223372036854775808"):
        scene(0, 2**63)


@pytest.mark.parametrize(("height", "width"), [(63, 96), (64, 95), (0, 0), (-5, 128)])
def test_scene_too_small_size(height, width):
    with pytest.raises(ValueError, match=rf"at least 64x96 pixels \(height x width\), got {height}x{width}"):
        scene(0, 0, height=height, width=width)


def test_scene_numpy_integer_seed():
    plain, numpy = scene(3, 5, height=64, width=96), scene(np.int64(3), np.uint32(5), height=64, width=96)
    np.testing.assert_array_equal(plain.image, numpy.image)


def test_stream_differs_by_purpose():
    draws = {Stream(0, 0, purpose).uniform() for purpose in range(10)}
    assert len(draws) == 10


def test_stream_table_and_gaussian_moments():
    random = Stream(1, 2, 3)
    table, gaussian = random.table(), random.gaussian(20_000)
    assert -1.0 <= table.min() < -0.99
    assert 0.99 < table.max() <= 1.0
    assert gaussian.mean() == pytest.approx(0.0, abs=0.03)
    assert gaussian.std() == pytest.approx(1.0, abs=0.03)


def test_view_noise_is_continuous_across_cells():
    table = Stream(0, 0, 0).table()
    noise, at = View(Road(Stream(0, 0, 1)), table, 4, 4).noise, np.arange(-5.0, 300.0)
    np.testing.assert_allclose(noise(at - 1e-9, at), noise(at + 1e-9, at - 1e-9), atol=1e-7)
    np.testing.assert_allclose(noise(np.array([3.0]), np.array([2.0])), table[[2 * 256 + 3]])


def test_road_project_inverts_view():
    road = Road(Stream(0, 4, 0))
    seen = View(road, Stream(0, 4, 1).table(), 96, 128)
    row, column = 80, 40
    u, v = road.project(seen.s[row, column], seen.z[row, column])
    assert (u, v) == (pytest.approx(seen.u[0, column]), pytest.approx(seen.v[row, 0]))
