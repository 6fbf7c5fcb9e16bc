"""Checkerboard artefacts of upsampling: the share of a map's energy that repeats with the stride."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from segjax import checks
from segjax.checks import AxisName, Where
from segjax.collectives import psum
from segjax.metrics._counting import Counts, ratio


class CheckerboardSums(NamedTuple):
    """Sums over windows and channels; they add across batches by `+`, field by field."""

    windows: Counts
    """Unmasked windows, int32."""
    periodic: Float[jax.Array | np.ndarray, ""]
    """Their energy at the stride's frequencies, in squared units of the map, at least float32."""
    total: Float[jax.Array | np.ndarray, ""]
    """Their energy at all frequencies but 0."""


def checkerboard_sums(
    maps: Float[ArrayLike, "..."],
    *,
    stride: int = 2,
    window: int | None = None,
    where: Where = None,
    axis_name: AxisName = None,
) -> CheckerboardSums:
    r"""Sums the energy of maps at the frequencies of a stride, and the total, over the windows of all devices.

    .. math:: E_s = \frac{1}{HW} \sum_{(k, l) \ne (0, 0)} \left| X_{k H / s,\, l W / s} \right|^2
        = \frac{HW}{s^2} \sum_{(k, l) \in [0, s)^2} (m_{kl} - \bar{m})^2, \qquad
        E = \frac{1}{HW} \sum_{(u, v) \ne (0, 0)} |X_{uv}|^2 = \sum_{ij} (x_{ij} - \bar{x})^2

    X is the discrete Fourier transform, and m_kl the mean of the pixels (i, j) with i = k and j = l modulo s.

    Args:
        maps: x, `[..., H, W, C]`: logits, features or images.
        stride: s ≥ 2. The last of several upsamplings by 2 has stride 2, the one before it 4 (which includes 2).
        window: side of the windows, a multiple of s, at least 2s; None: the map. Pixels in no window are left out.
        where: boolean, broadcastable to `[..., H, W]`; a window with a False pixel is left out.
        axis_name: mapped device axis, or None.

    Returns: `CheckerboardSums`, scalars, for `checkerboard_energy`. NaN if an unmasked window has a NaN.
    Raises: TypeError or ValueError if a dtype or shape does not fit, or the stride or the window is out of range.
    References: Odena et al., Deconvolution and Checkerboard Artifacts, Distill 2016; Durall et al., arXiv 2003.01826.

    >>> board = (jnp.indices((4, 6)).sum(0) % 2).astype(jnp.float32)
    >>> print(*checkerboard_sums(board[..., None]))
    1 6.0 6.0
    """
    maps = checks.floating("maps", maps)
    height, width = _window_size(maps.shape, stride, window)
    *batch, h, w, channels = maps.shape
    rows, columns = h // height, w // width
    # Axes, counted from the end where they are summed over: windows, cells inside a window, pixels inside a cell.
    split = (*batch, rows, height // stride, stride, columns, width // stride, stride)
    cells, places, whole = (-6, -3), (-5, -2), (-6, -5, -3, -2)
    maps = maps[..., : rows * height, : columns * width, :].reshape(*split, channels)
    keep = jnp.ones((*batch, rows, 1, 1, columns, 1, 1, 1), bool)
    if where is not None:
        kept = checks.mask("where", where, (*batch, h, w))[..., : rows * height, : columns * width]
        keep = jnp.all(kept.reshape(*split, 1), axis=whole, keepdims=True)
        maps = jnp.where(keep, maps, 0)
    rest = maps - jnp.mean(maps, axis=whole, keepdims=True)
    pattern = jnp.mean(rest, axis=cells, keepdims=True)
    pattern = pattern - jnp.mean(pattern, axis=places, keepdims=True)
    periodic = jnp.sum(pattern**2) * (height // stride * (width // stride))
    sums = jnp.sum(keep, dtype=jnp.int32), periodic, jnp.sum(rest**2)
    return CheckerboardSums(*psum(sums, axis_name))


def checkerboard_energy(sums: CheckerboardSums) -> float:
    r"""Returns the share of a map's energy at the frequencies of a stride.

    .. math:: E_s / E

    White noise has (s² - 1) / (n - 1) in windows of n pixels, a pure pattern of period s has 1, and a smooth map about
    0. The share falls where a map gains contrast elsewhere: compare windows of one size, of maps with the same content.

    Args:
        sums: sums of `checkerboard_sums`.

    Returns: The share in [0, 1], 0 is best; NaN if no window was counted or none of them had any energy.
    Raises: TypeError or ValueError if the sums are traced, not scalars, or not finite.
    References: Odena et al., Deconvolution and Checkerboard Artifacts, Distill 2016.

    >>> noise = jax.random.normal(jax.random.key(0), (100, 8, 8, 1))
    >>> round(checkerboard_energy(checkerboard_sums(noise)), 3), round(3 / 63, 3)
    (0.044, 0.048)
    """
    periodic, total = (checks.host(f"sums.{n}", getattr(sums, n)).astype(np.float64) for n in ("periodic", "total"))
    if periodic.shape != () or total.shape != ():
        raise ValueError(f"sums.periodic and sums.total must be scalars; got shapes {periodic.shape} and {total.shape}")
    if not np.isfinite(total):
        raise ValueError(f"sums.total is {total:g}: an unmasked window had a NaN or infinity")
    return float(ratio(periodic, total))


def _window_size(shape: tuple[int, ...], stride: int, window: int | None) -> tuple[int, int]:
    """Returns height and width of the windows, or raises a ValueError."""
    if len(shape) < 3:
        raise ValueError(f"maps must be [..., height, width, channels]; got shape {shape}")
    checks.scalar("stride", stride, jnp.int32, 2.0)
    h, w = shape[-3:-1]
    if min(h, w) < 2 * stride:
        raise ValueError(f"maps must be at least twice the stride, {2 * stride}, high and wide; got {h}x{w}")
    if window is None:
        return h - h % stride, w - w % stride
    if window % stride or not 2 * stride <= window <= min(h, w):
        valid = f"a multiple of the stride, {stride}, from {2 * stride} up to the side of the maps, {min(h, w)}"
        raise ValueError(f"window must be {valid}; got {window}")
    return window, window
