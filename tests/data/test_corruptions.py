import io

import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from segjax.data import CORRUPTIONS, corrupt
from segjax.data.augment import example_keys

jitted = jax.jit(corrupt, static_argnames="kind")


def keys(*index):
    return example_keys(jax.random.key(0), 0, jnp.array(index))


def scene(height=29, width=43, channels=3):
    """Returns a smooth picture with an edge and some noise, uint8."""
    rng = np.random.default_rng(0)
    y, x, phase = np.mgrid[:height, :width, :channels]
    picture = 110 + 60 * np.sin(x / 9 + phase) + 30 * np.cos(y / 5 - phase) + 40 * (x + y > height)
    return np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


def corrupted(image, kind, severity, index=0):
    """Returns a corrupted image in float64: not rounded if it is floating."""
    return np.asarray(jitted(jnp.asarray(image)[None], keys(index), kind=kind, severity=severity)[0], np.float64)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corrupt_ignores_padding_and_other_images(kind):
    size, padded = (17, 22), np.random.default_rng(1).integers(0, 256, (2, 29, 43, 3)).astype(np.uint8)
    padded[0], padded[1, :17, :22] = scene(), scene(*size)
    found = jitted(padded, keys(8, 5), kind=kind, severity=3, sizes=np.array([[29, 43], size]))
    alone = jitted(padded[1:, :17, :22], keys(5), kind=kind, severity=3)
    assert found.dtype == jnp.uint8
    # Sums of another length are rounded differently.
    np.testing.assert_allclose(found[1, :17, :22].astype(int), alone[0].astype(int), atol=1)
    assert (found[1, :17, :22] != alone[0]).mean() < 0.01
    assert not found[1, 17:].any()
    assert not found[1, :, 22:].any()


@pytest.mark.parametrize("kind", [kind for kind in CORRUPTIONS if kind != "fog"])  # 3 and 4 are equally thick
def test_corrupt_grows_with_the_severity(kind):
    image = scene().astype(np.float32)
    distances = [np.abs(corrupted(image, kind, severity) - image).mean() for severity in range(1, 6)]
    assert distances[0] > 1
    assert (np.diff(distances) > 0).all()


def test_corrupt_on_several_devices():
    images = np.stack([scene()] * 4)
    expected = jitted(images, keys(0, 1, 2, 3), kind="gaussian_noise", severity=2)
    assert (expected[0] != expected[1]).mean() > 0.9
    sharding = NamedSharding(Mesh(jax.devices(), ("devices",)), P("devices"))
    found = jitted(jax.device_put(images, sharding), keys(0, 1, 2, 3), kind="gaussian_noise", severity=2)
    np.testing.assert_array_equal(found, expected)


def test_gaussian_noise_has_the_standard_deviation_of_the_severity():
    gray = np.full((64, 64, 3), 127.5, np.float32)
    noise = corrupted(gray, "gaussian_noise", 1) / 255 - 0.5
    assert noise.std() == pytest.approx(0.08, rel=0.02)
    assert abs(noise.mean()) < 0.003
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.05


def test_impulse_noise_replaces_the_share_of_the_severity():
    found = corrupted(np.full((64, 64, 3), 100, np.float32), "impulse_noise", 5)
    for value in (0, 255):
        assert (found == value).mean() == pytest.approx(0.27 / 2, abs=0.01)
    assert (np.isclose(found, 100)).mean() == pytest.approx(1 - 0.27, abs=0.01)


@pytest.mark.parametrize("severity", [1, 5])
def test_gaussian_blur_equals_scipy(severity):
    image, sigma = scene().astype(np.float64), (1, 2, 3, 4, 6)[severity - 1]

    def blurred(x):
        return scipy.ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="constant", truncate=4)

    expected = blurred(image) / blurred(np.ones_like(image))
    np.testing.assert_allclose(corrupted(image.astype(np.float32), "gaussian_blur", severity), expected, atol=1e-2)


def test_motion_blur_of_a_point_is_a_half_gaussian_along_a_line():
    image = np.zeros((101, 101, 1), np.float32)
    image[50, 50] = 255
    found = corrupted(image, "motion_blur", 3)[..., 0] / 255  # radius 15, σ 8
    rows, columns = np.nonzero(found > 1e-6)
    weights, distances = found[rows, columns], np.hypot(rows - 50, columns - 50)
    expected = np.exp(-(np.arange(31) ** 2) / 2 / 8**2)
    assert weights.sum() == pytest.approx(1, rel=1e-5)
    assert weights[distances == 0] == pytest.approx(expected[0] / expected.sum(), rel=1e-5)
    assert weights @ distances == pytest.approx(expected @ np.arange(31) / expected.sum(), rel=0.02)
    assert distances.max() == pytest.approx(30, abs=0.75)
    slope = np.polyfit(columns, rows, 1)[0]
    assert abs(slope) < 1.05
    np.testing.assert_allclose(rows - 50, slope * (columns - 50), atol=1)


def test_fog_is_a_diamond_square_fractal():
    def fractal(severity, thickness):
        found = corrupted(np.full((256, 256, 1), 127.5, np.float32), "fog", severity)[..., 0] / 255
        return (found * (0.5 + thickness) / 0.5 - 0.5) / thickness

    def deviation(grid):
        """Returns the deviation of every second point of every second row from the mean of the four around it."""
        corners = (grid[:-2:2, :-2:2] + grid[2::2, :-2:2] + grid[:-2:2, 2::2] + grid[2::2, 2::2]) / 4
        return (grid[1:-1:2, 1:-1:2] - corners).std()

    for severity, thickness, decay in ((1, 1.5, 2), (5, 3, 1.4)):
        grid = fractal(severity, thickness)
        assert (grid.min(), grid.max()) == pytest.approx((0, 1), abs=1e-5)
        assert deviation(grid[::2, ::2]) / deviation(grid) == pytest.approx(decay**2, rel=0.05)


def test_brightness_equals_the_hsv_colour():
    image = scene()
    image[0, 0] = 0
    hsv = matplotlib.colors.rgb_to_hsv(image / 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + 0.3, 0, 1)
    expected = 255 * matplotlib.colors.hsv_to_rgb(hsv)
    np.testing.assert_allclose(corrupted(image.astype(np.float32), "brightness", 3), expected, atol=1e-3)


def test_contrast_keeps_the_mean_of_each_channel():
    image = scene().astype(np.float64)
    mean = image.mean(axis=(0, 1))
    expected = np.clip(mean + 0.1 * (image - mean), 0, 255)
    np.testing.assert_allclose(corrupted(image.astype(np.float32), "contrast", 4), expected, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_compression_equals_libjpeg(channels):
    image, file = scene(channels=channels), io.BytesIO()
    Image.fromarray(image if channels == 3 else image[..., 0]).save(file, "JPEG", quality=18, subsampling=0)
    expected = np.asarray(Image.open(file), np.float64).reshape(image.shape)
    found = corrupted(image, "jpeg_compression", 2)
    assert np.abs(image - expected).mean() > 3
    assert np.abs(found - expected).mean() < 0.3
    assert np.mean(np.abs(found - expected) > 2) < 0.02  # libjpeg's cosines are integers


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kind": "rain"}, ValueError, "gaussian_noise.*jpeg_compression; got 'rain'"),
        ({"severity": 0}, ValueError, "1, 2, 3, 4 or 5; got 0"),
        ({"images": np.zeros((1, 4, 4, 2), np.uint8)}, ValueError, "1 or 3 channels"),
        ({"images": np.zeros((1, 4, 4, 3), np.int32)}, TypeError, "uint8 or floating.*got int32"),
    ],
)
def test_corrupt_refuses(changes, error, message):
    arguments = {"images": np.zeros((1, 4, 4, 3), np.uint8), "kind": "fog", "severity": 1} | changes
    with pytest.raises(error, match=message):
        corrupt(jnp.asarray(arguments.pop("images")), keys(0), **arguments)
