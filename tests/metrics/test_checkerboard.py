import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax import metrics
from segjax.metrics import CheckerboardSums, checkerboard_energy

checkerboard_sums = jax.jit(metrics.checkerboard_sums, static_argnames=("stride", "window", "axis_name"))


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def energy(maps, **arguments) -> float:
    return checkerboard_energy(checkerboard_sums(maps, **arguments))


def by_fourier(maps: np.ndarray, stride: int) -> np.ndarray:
    """Returns both energies of a `[B, H, W, C]` whose sides are multiples of the stride, by NumPy's FFT in float64."""
    h, w = maps.shape[1:3]
    power = np.abs(np.fft.fft2(maps.astype(np.float64), axes=(1, 2))) ** 2 / (h * w)
    power[:, 0, 0] = 0
    return np.array([power[:, :: h // stride, :: w // stride].sum(), power.sum()])


@settings(max_examples=20)
@given(st.sampled_from([(2, 3, 4), (3, 2, 5), (4, 2, 2)]), st.integers(0, 2**31))
def test_checkerboard_sums_fourier_transform(shape, seed):
    stride, rows, columns = shape
    maps = noise(seed, 2, stride * rows, stride * columns, 3)
    sums = checkerboard_sums(maps, stride=stride)
    np.testing.assert_allclose([sums.periodic, sums.total], by_fourier(maps, stride), rtol=1e-4)
    assert sums.windows == 2


@pytest.mark.parametrize("stride", [2, 4])
def test_checkerboard_energy_pure_pattern(stride):
    pattern = np.tile(noise(0, stride, stride, 2), (4, 3, 1))
    assert energy(pattern, stride=stride) == pytest.approx(1, abs=1e-5)


def test_checkerboard_energy_white_noise():
    assert energy(noise(0, 500, 8, 12, 2)) == pytest.approx(3 / 95, rel=0.05)
    assert energy(noise(0, 500, 8, 12, 2), window=4) == pytest.approx(3 / 15, rel=0.05)


def test_checkerboard_energy_smooth_map():
    row, column = np.indices((64, 48), np.float32)
    assert energy((row * column)[..., None]) < 1e-3


def test_checkerboard_energy_slope_in_small_window():
    row, _ = np.indices((64, 48), np.float32)
    assert energy(row[..., None], window=16) == pytest.approx(3 / 255, rel=1e-3)


def test_checkerboard_energy_sign_change():
    board = (-1.0) ** np.indices((8, 16)).sum(0)[..., None]
    board[:, 8:] *= -1
    assert energy(board) == pytest.approx(0, abs=1e-6)
    assert energy(board, window=8) == pytest.approx(1, abs=1e-6)


def test_checkerboard_sums_windows():
    maps = noise(0, 2, 9, 14, 3)
    windows = [maps[:, i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4, 8)]
    sums = checkerboard_sums(maps, window=4)
    expected = jax.tree.map(lambda *parts: sum(parts), *(checkerboard_sums(window) for window in windows))
    assert sums.windows == 12
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5), sums, expected)


def test_checkerboard_sums_masked_window():
    maps = noise(0, 3, 8, 8, 2)
    holed, where = maps.copy(), np.ones((3, 8, 8), bool)
    holed[1, 2, 5], where[1, 2, 5] = np.nan, False
    whole = checkerboard_sums(holed, where=where)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5), whole, checkerboard_sums(maps[[0, 2]]))
    assert checkerboard_sums(holed, where=where, window=4).windows == 11


def test_checkerboard_sums_gradient_of_masked_window():
    maps, where = jnp.asarray(noise(0, 2, 4, 4, 1)).at[0].set(jnp.nan), jnp.array([False, True]).reshape(2, 1, 1)
    gradient = jax.jit(jax.grad(lambda x: checkerboard_sums(x, where=where).periodic))(maps)
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.abs(gradient[1]).min() > 0


def test_checkerboard_energy_nothing_counted():
    assert np.isnan(energy(noise(0, 4, 4, 1), where=np.zeros((4, 4), bool)))
    assert np.isnan(energy(np.ones((4, 4, 1), np.float32)))


def test_checkerboard_sums_bfloat16():
    sums = checkerboard_sums(jnp.asarray(noise(0, 4, 4, 1), jnp.bfloat16))
    assert sums.total.dtype == sums.periodic.dtype == jnp.float32


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_checkerboard_energy_refuses_nonfinite(value):
    maps = noise(0, 4, 4, 1)
    maps[0, 0] = value
    with pytest.raises(ValueError, match=r"sums\.total is nan: an unmasked window had a NaN"):
        energy(maps)


def test_checkerboard_energy_refuses_stacked_sums():
    with pytest.raises(ValueError, match=r"must be scalars; got shapes \(2,\) and \(2,\)"):
        checkerboard_energy(CheckerboardSums(np.ones(2, np.int32), np.ones(2), np.ones(2)))


def test_checkerboard_energy_refuses_traced_sums():
    with pytest.raises(TypeError, match=r"sums\.periodic must be known on the host"):
        jax.jit(energy)(noise(0, 4, 4, 1))


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((4, 4), {}, r"\[..., height, width, channels\]; got shape \(4, 4\)"),
        ((4, 4, 1), {"stride": 1}, "stride must be at least 2; got 1"),
        ((4, 3, 1), {}, "at least twice the stride, 4, high and wide; got 4x3"),
        ((8, 8, 1), {"window": 5}, "multiple of the stride, 2, from 4 up to the side of the maps, 8; got 5"),
        ((8, 8, 1), {"window": 2}, "from 4 up to the side of the maps, 8; got 2"),
        ((8, 8, 1), {"window": 10}, "from 4 up to the side of the maps, 8; got 10"),
        ((8, 8, 1), {"where": np.ones((4, 8), bool)}, r"where must have shape \(8, 8\)"),
    ],
)
def test_checkerboard_sums_broken_input(shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.checkerboard_sums(np.zeros(shape, np.float32), **arguments)
