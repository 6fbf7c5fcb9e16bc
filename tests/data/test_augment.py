from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from segjax.data.augment import augment, augment_boxes, copy_paste, example_keys, paste_outliers, prepare
from segjax.data.labels import VOID
from segjax.data.resize import resize

NEUTRAL = {
    "size": (24, 32),
    "crop_fraction": 1.0,
    "flip": False,
    "scale": (1.0, 1.0),
    "rotation": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "mean": (0.4,),
    "std": (0.2,),
}
STATIC = ("size", "flip", "scale", "rotation", "brightness", "contrast", "mean", "std", "letterbox", "rare_classes")
jitted = jax.jit(augment, static_argnames=STATIC)
jitted_prepare = jax.jit(prepare, static_argnames=("size", "mean", "std", "letterbox"))


def keys(count: int, seed: int = 0) -> jax.Array:
    return example_keys(jax.random.key(seed), 5, jnp.arange(count))


def scene(batch: int = 4, height: int = 45, width: int = 61, channels: int = 3) -> tuple[jax.Array, jax.Array]:
    """Returns images of noise, and labels in large blocks of 0 to 3."""
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 4, (batch, 3, 4)), np.ones((1, -(-height // 3), -(-width // 4))))
    images = rng.integers(0, 256, (batch, height, width, channels), np.uint8)
    return jnp.asarray(images), jnp.asarray(blocks[:, :height, :width], jnp.uint8)


def run(images, labels, example=None, **settings):
    return jitted(images, labels, keys(len(images)) if example is None else example, **{**NEUTRAL, **settings})


def test_example_keys_depend_only_on_seed_step_and_index():
    def bits(seed, step, *index):
        return jax.random.key_data(example_keys(jax.random.key(seed), step, jnp.array(index))).tolist()

    assert bits(0, 3, 8, 7) == bits(0, 3, 7, 8)[::-1]
    assert len({str(b) for b in (bits(0, 3, 7), bits(0, 3, 8), bits(0, 4, 7), bits(1, 3, 7))}) == 4


@pytest.mark.parametrize(
    ("native", "padded", "fitted"),
    [((20, 90), None, (7, 32)), ((60, 31), (64, 64), (24, 12))],
    ids=["wide", "high and padded"],
)
def test_augment_letterboxed_neutral_settings_equal_prepare(native, padded, fitted):
    images, labels = scene(height=native[0], width=native[1])
    options = {"size": (24, 32), "mean": (0.4,), "std": (0.2,)}
    resized = jitted_prepare(images, **options | {"size": fitted})
    nearest = np.asarray(jax.image.resize(labels, (4, *fitted), "nearest"))
    margins = [(0, 0), *((0, full - n) for full, n in zip((24, 32), fitted, strict=True))]
    sizes = None
    if padded:
        sizes = jnp.array([native] * 4)
        more = [(0, 0), *((0, full - n) for full, n in zip(padded, native, strict=True))]
        images, labels = np.pad(images, [*more, (0, 0)], constant_values=77), np.pad(labels, more)
    prepared = jitted_prepare(images, **options, sizes=sizes, letterbox=True)
    np.testing.assert_allclose(prepared, np.pad(resized, [*margins, (0, 0)]), atol=1e-5)
    actual, actual_labels = run(images, labels, sizes=sizes, letterbox=True)
    inside = np.s_[:, : fitted[0] - 1, : fitted[1] - 1]  # a padded image ends softly
    np.testing.assert_allclose(actual[inside], prepared[inside], atol=2e-4)
    np.testing.assert_array_equal(actual_labels, np.pad(nearest, margins, constant_values=VOID))
    assert not np.asarray(actual)[:, fitted[0] :].any()
    assert not np.asarray(actual)[:, :, fitted[1] :].any()


@pytest.mark.parametrize(("fraction", "rows"), [(0.25, 32), (0.5, 16)])
def test_augment_letterboxed_crops_lie_in_the_image_where_they_fit(fraction, rows):
    images, labels = scene(height=20, width=80)  # of a frame of 80 × 80
    _, actual = run(images, labels, size=(32, 32), crop_fraction=fraction, letterbox=True)
    assert np.array_equal(np.asarray(actual) != VOID, np.broadcast_to(np.arange(32)[:, None] < rows, (4, 32, 32)))


def test_augment_and_prepare_under_strict_promotion():
    images, labels = scene(batch=1)
    settings = {"flip": True, "scale": (0.5, 2.0), "rotation": 10.0, "brightness": 0.1, "contrast": 0.1}
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(partial(augment, **{**NEUTRAL, **settings}), images, labels, keys(1))
        jax.eval_shape(partial(augment, **NEUTRAL), images, labels, keys(1))
        letterboxed = {"letterbox": True, "sizes": jnp.array([[40, 60]])}
        jax.eval_shape(partial(augment, **NEUTRAL, **letterboxed), images, labels, keys(1))
        jax.eval_shape(partial(prepare, size=(24, 32), mean=(0.4,), std=(0.2,)), images)
        jax.eval_shape(partial(prepare, size=(24, 32), mean=(0.4,), std=(0.2,), letterbox=True), images)
        jax.eval_shape(
            lambda x, n: resize(x, (8, 9), antialias=False, to_sizes=n), jnp.ones((1, 2, 2, 1)), jnp.array([[3, 2]])
        )


@pytest.mark.parametrize("size", [(24, 32), (45, 61), (90, 50)])
def test_augment_neutral_settings_equal_prepare(size):
    images, labels = scene()
    actual, actual_labels = run(images, labels, size=size)
    np.testing.assert_allclose(actual, jitted_prepare(images, size=size, mean=(0.4,), std=(0.2,)), atol=2e-4)
    nearest = jax.image.resize(labels, (4, *size), "nearest")
    np.testing.assert_array_equal(actual_labels, nearest)
    assert (actual.dtype, actual_labels.dtype) == (jnp.float32, jnp.int32)


def test_augment_of_the_whole_mirrored_source():
    images, labels = scene(height=48, width=64)
    expected_images, expected = run(images, labels)  # 2 : 1, where every centre is between two pixels
    for axis in (1, 2):
        mirrored_images, mirrored = run(jnp.flip(images, axis), jnp.flip(labels, axis))
        np.testing.assert_array_equal(jnp.flip(mirrored, axis), expected)
        np.testing.assert_allclose(jnp.flip(mirrored_images, axis), expected_images, atol=1e-4)


def test_prepare_resizes_with_antialiasing_and_normalises():
    images, _ = scene()
    mean, std = np.array([0.3, 0.4, 0.5]), np.array([0.1, 0.2, 0.3])
    resized = jax.image.resize(images / 255, (4, 20, 30, 3), "linear", antialias=True)
    actual = jitted_prepare(images, size=(20, 30), mean=tuple(mean), std=tuple(std))
    np.testing.assert_allclose(actual, (resized - mean) / std, atol=1e-4)


def test_augment_and_prepare_keep_one_channel():
    images, labels = scene(channels=1)
    assert run(images, labels)[0].shape == (4, 24, 32, 1)
    assert jitted_prepare(images, size=(24, 32), mean=(0.5,), std=(0.2,)).shape == (4, 24, 32, 1)


# A label painted into the image as a grey value must appear where the label does.
@pytest.mark.parametrize(
    "settings",
    [
        {"crop_fraction": 0.6},
        {"flip": True},
        {"scale": (0.6, 0.7)},
        {"scale": (1.5, 2.0)},
        {"rotation": 40.0},
        {"crop_fraction": 0.7, "flip": True, "scale": (0.7, 1.4), "rotation": 30.0},
    ],
    ids=["crop", "flip", "shrink", "enlarge", "rotation", "all"],
)
def test_augment_images_and_labels_share_their_geometry(settings):
    _, labels = scene(batch=8)
    painted = jnp.repeat((labels * 60)[..., None], 3, axis=-1)
    images, actual = run(painted, labels, size=(48, 64), mean=(0.5,), std=(0.25,), **settings)
    grey = (np.asarray(images) * 0.25 + 0.5) * 255
    expected = np.where(actual == VOID, 127.5, np.asarray(actual) * 60.0)
    agrees = np.abs(grey - expected[..., None]).max(-1) < 1
    flat = far_from_edges(np.asarray(actual))
    assert flat.mean() > 0.3
    assert agrees[flat].all()
    changed = np.asarray(run(painted, labels, size=(48, 64))[1]) != actual
    assert changed.any(axis=(1, 2)).sum() >= 2


def far_from_edges(labels: np.ndarray, reach: int = 2) -> np.ndarray:
    """Masks pixels whose whole neighbourhood has their label and lies in the image."""
    height, width = labels.shape[1:]
    padded = np.pad(labels, ((0, 0), (reach, reach), (reach, reach)), constant_values=-1)
    shifts = range(2 * reach + 1)
    return np.all([padded[:, i : i + height, j : j + width] == labels for i in shifts for j in shifts], axis=0)


# (x_min, y_min, x_max, y_max) of squares that are drawn in an image of 120×160 pixels.
SQUARES = np.array([[10, 20, 50, 60], [90, 5, 155, 50], [70, 80, 130, 115]], np.float32)
moved = jax.jit(augment_boxes, static_argnames=("size", "flip", "scale", "rotation", "letterbox"))


def drawn_squares():
    label = np.zeros((8, 120, 160), np.uint8)
    for i, (left, top, right, bottom) in enumerate(SQUARES.astype(int), 1):
        label[:, top:bottom, left:right] = i
    return jnp.zeros((8, 120, 160, 1), jnp.uint8), jnp.asarray(label)


def pixels_of(shown, i):
    rows, columns = np.nonzero(np.asarray(shown) == i + 1)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) if len(rows) else None


@pytest.mark.parametrize("letterbox", [False, True])
def test_augment_boxes_fit_the_pixels(letterbox):
    settings = {"size": (96, 112), "crop_fraction": 0.8, "flip": True, "rotation": 0.0, "scale": (0.7, 1.6)}
    settings["letterbox"] = letterbox
    found, inside = moved(jnp.broadcast_to(SQUARES, (8, 3, 4)), keys(8), jnp.array([[120, 160]] * 8), **settings)
    _, shown = run(*drawn_squares(), **settings)
    for image, i in np.ndindex(8, 3):
        if (pixels := pixels_of(shown[image], i)) is not None:
            np.testing.assert_allclose(found[image, i], pixels, atol=0.51)
        else:
            assert inside[image, i] < 0.05
    assert inside.min() < 0.5
    np.testing.assert_allclose(inside.max(), 1, atol=1e-6)


def test_augment_boxes_contain_the_rotated_pixels():
    settings = {"size": (96, 128), "crop_fraction": 0.8, "flip": True, "rotation": 30.0, "scale": (0.7, 1.6)}
    found, _ = moved(jnp.broadcast_to(SQUARES, (8, 3, 4)), keys(8), jnp.array([[120, 160]] * 8), **settings)
    _, shown = run(*drawn_squares(), **settings)
    whole = 0
    for image, i in np.ndindex(8, 3):
        if (pixels := pixels_of(shown[image], i)) is not None:
            box = np.asarray(found[image, i])
            assert (box[:2] <= pixels[:2] + 1).all()
            assert (box[2:] >= pixels[2:] - 1).all()
            if box.min() > 0 and (box[2:] < (128, 96)).all():  # not cut off: the corners are pixels of the square
                np.testing.assert_allclose(box, pixels, atol=1.5)
                whole += 1
    assert whole > 1


def test_augment_boxes_without_area_are_not_inside():
    settings = {name: NEUTRAL[name] for name in ("size", "crop_fraction", "flip", "scale", "rotation")}
    boxes = jnp.array([[[3.0, 4, 3, 9], [0, 0, 16, 12], [0, 0, 0, 0]]])
    found, inside = moved(boxes, keys(1), jnp.array([[12, 16]]), **settings)
    assert inside.tolist() == [[0, 1, 0]]
    assert found[0, 1].tolist() == [0, 0, 32, 24]


def test_augment_outside_the_source_is_mean_and_void():
    images = jnp.full((4, 20, 30, 3), 255, jnp.uint8)
    labels = jnp.zeros((4, 20, 30), jnp.uint8)
    actual, actual_labels = run(images, labels, scale=(0.5, 0.5), brightness=0.3, contrast=0.3)
    outside = actual_labels == VOID
    np.testing.assert_array_equal(actual[outside], 0)
    np.testing.assert_allclose(outside.mean(), 0.75, atol=0.02)


def test_augment_rotation_shows_the_source_beyond_the_window():
    images, labels = scene(height=90, width=120)
    _, actual = run(images, labels, crop_fraction=0.4, rotation=20.0)
    centred = run(images, labels, jnp.broadcast_to(middle_key(), (4,)), crop_fraction=0.4, rotation=20.0)[1]
    assert (centred != VOID).all()
    assert (actual != VOID).any()


def middle_key() -> jax.Array:
    """Returns a key that puts the window near the centre of the source."""
    candidates = keys(64, seed=1)
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (7,)))(candidates)
    return candidates[jnp.argmin(jnp.abs(drawn[:, :2] - 0.5).max(axis=1))]


def test_augment_flips_about_half_of_the_examples():
    images, labels = scene(batch=64, height=24, width=32)
    actual, actual_labels = run(images, labels, flip=True)
    plain, _ = run(images, labels)
    flipped = np.array([np.allclose(a, p[:, ::-1], atol=1e-4) for a, p in zip(actual, plain, strict=True)])
    kept = np.array([np.allclose(a, p, atol=1e-4) for a, p in zip(actual, plain, strict=True)])
    assert (flipped ^ kept).all()
    assert 16 < flipped.sum() < 48
    np.testing.assert_array_equal(actual_labels, np.where(flipped[:, None, None], labels[..., ::-1], labels))


def test_augment_crop_position_is_uniform():
    # Pixel values are coordinates, so the first output pixel gives the window's corner.
    height = width = 100
    rows = np.broadcast_to(np.arange(height)[:, None, None], (height, width, 1))
    columns = np.broadcast_to(np.arange(width)[None, :, None], (height, width, 1))
    images = jnp.asarray(np.concatenate([rows, columns], -1), jnp.uint8)
    count, fraction = 256, 0.6
    crop = jax.jit(jax.vmap(lambda key: augment(images[None], images[None, ..., 0], key[None], **settings)[0][0]))
    settings = {**NEUTRAL, "size": (6, 6), "crop_fraction": fraction, "mean": (0.0,), "std": (1.0,)}
    corner = np.asarray(crop(keys(count)))[:, 0, 0] * 255 + 0.5 - 0.5 * fraction * 100 / 6
    place = np.sort(corner / (100 * (1 - fraction)), axis=0)
    assert -0.02 < place.min() < place.max() < 1.02
    uniform = (np.arange(count) + 0.5) / count
    assert np.abs(place - uniform[:, None]).max() < 1.63 / np.sqrt(count)  # Kolmogorov-Smirnov at 1 %


def rare_scene(*pixels: tuple[int, int, int], batch: int = 512) -> tuple[jax.Array, jax.Array]:
    """Returns images and labels of 0 with a few labelled pixels, (class, row, column), the same in each."""
    labels = np.zeros((batch, 48, 64), np.uint8)
    for value, row, column in pixels:
        labels[:, row, column] = value
    return jnp.zeros((*labels.shape, 1), jnp.uint8), jnp.asarray(labels)


# A window of 12 × 16 pixels, of which the output shows each one twice.
RARE = {"crop_fraction": 0.25, "rare_classes": (1, 2)}


@pytest.mark.parametrize("settings", [{}, {"flip": True}, {"letterbox": True}], ids=["plain", "flip", "letterbox"])
@pytest.mark.parametrize("at", [(0, 0), (47, 63), (20, 31)])
def test_augment_rare_crops_contain_a_rare_pixel(at, settings):
    _, labels = run(*rare_scene((1, *at)), **RARE, **settings, rare_crops=1.0)
    assert bool((labels == 1).any(axis=(1, 2)).all())


def test_augment_rare_crops_of_padded_images_stay_inside():
    images, labels = rare_scene((1, 17, 19), batch=64)
    _, shown = run(images, labels, **RARE, rare_crops=1.0, sizes=jnp.tile(jnp.array([[24, 32]]), (64, 1)))
    assert bool((shown == 1).any(axis=(1, 2)).all())
    assert not bool((shown == VOID).any())


def test_augment_rare_crops_have_the_pixel_anywhere():
    _, labels = run(*rare_scene((1, 24, 32)), **RARE, rare_crops=1.0)
    for axis in (1, 2):
        at = np.argmax((np.asarray(labels) == 1).any(axis=3 - axis), axis=1) / labels.shape[axis]
        np.testing.assert_allclose(np.quantile(at, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.08)


def test_augment_rare_crops_choose_the_class_before_the_pixel():
    images, labels = rare_scene((2, 4, 60))
    labels = labels.at[:, 30:, :20].set(1)  # 360 pixels against one
    _, shown = run(images, labels, **RARE, rare_crops=1.0)
    assert 0.43 < float((shown == 2).any(axis=(1, 2)).mean()) < 0.57


def test_augment_rare_crops_are_a_share():
    images, labels = rare_scene((1, 0, 0))  # a uniform window almost never contains a corner
    _, shown = run(images, labels, **RARE, rare_crops=0.3)
    assert 0.23 < float((shown == 1).any(axis=(1, 2)).mean()) < 0.38


@pytest.mark.parametrize("change", [{"rare_crops": 0.0}, {"rare_classes": (7,), "rare_crops": 1.0}])
def test_augment_without_a_rare_crop_is_unchanged(change):
    images, labels = scene()
    settings = {**RARE, "crop_fraction": 0.5, "flip": True, **change}
    found, plain = run(images, labels, **settings), run(images, labels, crop_fraction=0.5, flip=True)
    np.testing.assert_allclose(found[0], plain[0], atol=1e-5)  # another program may round otherwise
    np.testing.assert_array_equal(found[1], plain[1])


def test_augment_never_mixes_labels():
    images, labels = scene()
    strange = jnp.array([0, 7, 200, 254], jnp.uint8)[labels]
    _, actual = run(images, strange, crop_fraction=0.5, flip=True, scale=(0.5, 2.0), rotation=45.0)
    assert set(np.unique(actual)) <= {0, 7, 200, 254, VOID}


def test_augment_brightness_and_contrast():
    images, labels = scene(batch=16)
    plain, _ = run(images, labels)
    brighter, _ = run(images, labels, brightness=0.2)
    offsets = np.asarray(brighter - plain).reshape(16, -1) * 0.2
    np.testing.assert_allclose(offsets.std(axis=1), 0, atol=1e-5)
    assert offsets.mean(axis=1).min() < -0.05 < 0.05 < offsets.mean(axis=1).max() <= 0.2
    steeper, _ = run(images, labels, contrast=0.5)
    factors = np.asarray((steeper * plain).sum((1, 2, 3)) / (plain**2).sum((1, 2, 3)))
    np.testing.assert_allclose(steeper, factors[:, None, None, None] * plain, atol=1e-4)
    assert 0.5 <= factors.min() < 0.8 < 1.2 < factors.max() <= 1.5


def test_augment_is_independent_of_batch_and_device():
    images, labels = scene()
    busy = {"crop_fraction": 0.7, "flip": True, "scale": (0.8, 1.2), "rotation": 10.0, "brightness": 0.1}
    together = run(images, labels, **busy)
    order = jnp.array([2, 0, 3, 1])
    shuffled = run(images[order], labels[order], keys(4)[order], **busy)
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:4]), ("devices",)), P("devices"))
    spread = run(*jax.device_put((images, labels, keys(4)), sharding), **busy)
    for (images, labels), places in ((shuffled, order), (spread, jnp.arange(4))):
        # Images to rounding: the compiler may order the sums of another partition differently.
        np.testing.assert_allclose(images, np.asarray(together[0])[places], atol=1e-4)
        np.testing.assert_array_equal(labels, np.asarray(together[1])[places])


def test_augment_traces_once_for_all_crop_fractions():
    images, labels = scene()

    def cropped(fraction):
        return augment(images, labels, keys(4), **{**NEUTRAL, "crop_fraction": fraction})[0]

    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(cropped, n=1))
    outputs = [traced(jnp.float32(fraction)) for fraction in (0.6, 0.75, 1.0)]
    assert not np.allclose(outputs[0], outputs[2])


def test_augment_without_rotation_gathers_no_image():
    images, labels = scene()

    def gathers(rotation):
        settings = {**NEUTRAL, "rotation": rotation}
        return str(jax.make_jaxpr(partial(augment, **settings))(images, labels, keys(4))).count("gather[")

    assert gathers(0.0) == 1
    assert gathers(10.0) > 1


@pytest.mark.slow
def test_augment_on_tpu_has_no_gather_and_the_same_labels(monkeypatch):
    images, labels = scene()
    labels = jnp.where(labels == 3, jnp.uint8(VOID), labels)
    settings = {**NEUTRAL, "scale": (0.5, 2.0), "flip": True}
    program = jax.export.export(jax.jit(partial(augment, **settings)), platforms=["tpu"])(images, labels, keys(4))
    assert "stablehlo.gather" not in program.mlir_module()

    here = augment(images, labels, keys(4), **settings)[1]
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *operands, default, tpu=None, **_: (tpu or default)(*operands)
    )
    jax.clear_caches()
    np.testing.assert_array_equal(augment(images, labels, keys(4), **settings)[1], here)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": jnp.zeros((1, 4, 4, 3), jnp.float16)}, TypeError, "images must be uint8 or float32.*got float16"),
        ({"images": jnp.zeros((4, 4, 3), jnp.uint8)}, ValueError, r"images must be \[batch.*got shape \(4, 4, 3\)"),
        ({"labels": jnp.zeros((1, 4, 4), jnp.int32)}, TypeError, "labels must be uint8 class indices; got int32"),
        ({"labels": jnp.zeros((1, 4, 5), jnp.uint8)}, ValueError, r"images' shape \(1, 4, 4\); got \(1, 4, 5\)"),
        ({"size": (0, 4)}, ValueError, r"positive height and width; got \(0, 4\)"),
        ({"mean": (0.5, 0.5)}, ValueError, r"mean needs one value or one for each of 3 channels; got \(0.5, 0.5\)"),
        ({"std": (0.0,)}, ValueError, r"std must be positive; got \(0.0,\)"),
        ({"crop_fraction": 1.5}, ValueError, r"crop_fraction must be in \(0, 1\]; got 1.5"),
        ({"crop_fraction": 0.0}, ValueError, r"crop_fraction must be in \(0, 1\]; got 0.0"),
        ({"scale": (1.2, 0.8)}, ValueError, r"0 < lo <= hi; got \(1.2, 0.8\)"),
        ({"rotation": -1.0}, ValueError, r"\[0, 180\] degrees; got -1.0"),
        ({"rare_classes": (1,), "rare_crops": 1.5}, ValueError, r"rare_crops must be in \[0, 1\]; got 1.5"),
        ({"contrast": -0.1}, ValueError, "must not be negative; got 0.0 and -0.1"),
    ],
)
def test_augment_invalid_arguments(change, error, message):
    arrays = {"images": jnp.zeros((1, 4, 4, 3), jnp.uint8), "labels": jnp.zeros((1, 4, 4), jnp.uint8)}
    with pytest.raises(error, match=message):
        augment(**{**arrays, "keys": keys(1), **NEUTRAL, **change})


@pytest.fixture(scope="module")
def pasted():
    """Returns a batch with one channel, and the images, labels and outliers after three fragments were pasted."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 48, 64, 1)).astype(np.float32)
    labels = rng.integers(0, 3, (4, 48, 64)).astype(np.int32)
    paste = jax.jit(lambda i, y, k: paste_outliers(i, y, k, 3))
    return paste, images, labels, jax.device_get(paste(images, labels, keys(4)))


def test_paste_outliers_changes_the_covered_pixels_only(pasted):
    _, images, labels, (after, void, outliers) = pasted
    same = (void == labels) & ~outliers
    np.testing.assert_array_equal(after[same], images[same])
    np.testing.assert_array_equal(void[~same], VOID)
    assert 0.005 < outliers.mean() < 0.2
    assert (~same & ~outliers).mean() < 0.1  # the edges
    assert (after[outliers] != images[outliers]).mean() > 0.9
    assert images.min() <= after.min() < after.max() <= images.max()


def test_paste_outliers_depends_on_the_key_alone(pasted):
    paste, images, labels, (after, _, outliers) = pasted
    order = np.array([2, 0, 3, 1])
    again = paste(images[order], labels[order], keys(4)[order])
    np.testing.assert_array_equal(again[2], outliers[order])
    np.testing.assert_allclose(again[0], after[order], rtol=1e-5, atol=1e-5)
    assert not (outliers[0] == outliers[1]).all()


def test_paste_outliers_keeps_off_the_padding():
    images = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    labels = jnp.zeros((1, 32, 32), jnp.int32)
    inside = jnp.zeros((1, 32, 32), bool).at[:, :10, 4:].set(True)
    padded = jnp.where(inside[..., None], images, 100)  # an extreme colour, which no fragment may have
    after, void, outliers = jax.jit(partial(paste_outliers, count=8))(padded, labels, keys(1), inside=inside)
    assert outliers.any()
    assert not (outliers & ~inside).any()
    np.testing.assert_array_equal(void[~inside], 0)
    assert after[inside].max() < 10


# Copy-paste.


def pasted_with(probability, count=64):
    """Returns images of 0 and labels of 0 with the rare pixels of donors of 1, whose column j has the label j."""
    labels = jnp.zeros((count, 4, 6), jnp.int32)
    donor_labels = jnp.broadcast_to(jnp.arange(6), labels.shape)
    images, donors = jnp.zeros((*labels.shape, 2)), jnp.ones((*labels.shape, 2))
    options = {"rare_classes": (2, 5), "probability": probability}
    return jax.jit(partial(copy_paste, **options))(images, labels, donors, donor_labels, keys(count))


def test_copy_paste_pastes_the_rare_pixels_with_their_labels():
    images, labels = pasted_with(1.0)
    np.testing.assert_array_equal(labels, np.broadcast_to([0, 0, 2, 0, 0, 5], labels.shape))
    np.testing.assert_array_equal(images[..., 0], labels > 0)
    np.testing.assert_array_equal(images[..., 1], labels > 0)


def test_copy_paste_changes_a_share_of_the_images():
    _, labels = pasted_with(0.25, count=400)
    assert 0.18 < np.asarray(labels).any(axis=(1, 2)).mean() < 0.32


def test_copy_paste_with_probability_0_changes_nothing():
    images, labels = pasted_with(0.0)
    assert not np.asarray(images).any()
    assert not np.asarray(labels).any()
