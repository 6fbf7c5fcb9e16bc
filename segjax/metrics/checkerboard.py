"""Checkerboard artefacts of upsampling: how much of a map repeats with the upsampling's stride.

A layer that makes s×s pixels of one can treat them differently, everywhere alike: then its output carries a pattern of
period s. Energies are summed on the device, windows add; the share is taken on the host.
"""

from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Integer

from segjax import checks
from segjax.collectives import psum
from segjax.metrics.counts import ratio

_CAUSE = "a NaN or infinity was in a window that `where` keeps"


class CheckerboardSums(NamedTuple):
    """Sums over windows and channels; they add across batches by `+`, field by field."""

    windows: Integer[jax.Array | np.ndarray, ""]
    """Windows that were looked at, int32."""
    periodic: Float[jax.Array | np.ndarray, ""]
    """Their energy at the stride's frequencies, in squared units of the map, at least float32."""
    total: Float[jax.Array | np.ndarray, ""]
    """Their energy at all frequencies but 0."""


def checkerboard_sums(
    maps: Float[ArrayLike, "..."],
    *,
    stride: int = 2,
    window: int | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
    axis_name: Hashable | None = None,
) -> CheckerboardSums:
    r"""The energy of maps at the frequencies of a stride, and all of it, over the windows of all devices.

    .. math:: E_s = \frac{1}{HW} \sum_{(k, l) \ne (0, 0)} \left| X_{k H / s,\, l W / s} \right|^2
        = \frac{HW}{s^2} \sum_{(k, l) \in [0, s)^2} (m_{kl} - \bar{m})^2, \qquad
        E = \frac{1}{HW} \sum_{(u, v) \ne (0, 0)} |X_{uv}|^2 = \sum_{ij} (x_{ij} - \bar{x})^2

    X is the discrete Fourier transform, and m_kl the mean of the pixels (i, j) with i = k and j = l modulo s: energy at
    the stride's frequencies is what all s×s cells have in common, and no transform is needed to find it. (0, 0), the
    mean of each channel, is left out.

    Over a whole map a pattern counts only as far as it keeps its sign. One that comes and goes with what is in the
    image is found in windows, each with a mean and a pattern of its own; a window sees the less smooth the smaller.

    Args:
        maps: x, `[..., H, W, C]`: logits, features or images.
        stride: s ≥ 2. Of several upsamplings by 2, the last has 2, and the one before it 4, which takes in 2 as well.
        window: side of the windows, a multiple of s from 2s on; None: each map is one. Lines at the bottom and right
            that do not fill a window (or, of a whole map, a cell of s×s) are left out.
        where: boolean `[..., H, W]` or broadcastable to it. False: no such pixel, whatever is there; a spectrum has no
            holes, so that its whole window is left out.
        axis_name: mapped device axis (`pmap`, `shard_map`) over which the windows are spread; None: no such axis.

    Returns:
        `CheckerboardSums`, scalars, for `checkerboard_energy`. NaN where a kept window has a NaN.

    Raises:
        TypeError: maps are not floating, `where` not boolean.
        ValueError: maps of fewer than three axes or smaller than 2s, a stride below 2, a window that is no multiple of
            it, less than twice it or larger than the maps, a `where` that does not fit.

    References:
        Odena et al., Deconvolution and Checkerboard Artifacts, Distill 2016; Durall et al., Watch your Up-Convolution,
        arXiv 2003.01826.

    >>> board = (jnp.indices((4, 6)).sum(0) % 2).astype(jnp.float32)
    >>> sums = checkerboard_sums(board[..., None])
    >>> print(*sums)
    1 6.0 6.0
    """
    maps = checks.floating("maps", maps)
    height, width = _window_size(maps.shape, stride, window)
    *batch, h, w, channels = maps.shape
    rows, columns = h // height, w // width
    # Windows, and in them cells, and in them places; the axes that are summed over count from the end.
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
    r"""The share of a map's energy that lies at the frequencies of a stride.

    .. math:: E_s / E

    White noise has (s² - 1) / (n - 1) in windows of n pixels, its share of the frequencies; a pure pattern of period s
    has 1; what is smooth over a whole map of many pixels has about 0. In a small window a slope is not smooth: it jumps
    where the window would repeat, and a plain one has the share of white noise. So compare windows of one size, of maps
    with the same content, and look at whole maps too. The share also falls where a map gains contrast elsewhere.

    Args:
        sums: sums of `checkerboard_sums`.

    Returns:
        The share in [0, 1], 0 is best; NaN if no window was kept or none of them had any energy.

    Raises:
        TypeError: the sums are traced.
        ValueError: the sums are no scalars, or something that is not finite was summed.

    References:
        Odena et al., Deconvolution and Checkerboard Artifacts, Distill 2016.

    >>> noise = jax.random.normal(jax.random.key(0), (100, 8, 8, 1))
    >>> round(checkerboard_energy(checkerboard_sums(noise)), 3), round(3 / 63, 3)
    (0.044, 0.048)
    """
    periodic, total = (checks.host(f"sums.{n}", getattr(sums, n)).astype(np.float64) for n in ("periodic", "total"))
    if periodic.shape != () or total.shape != ():
        raise ValueError(f"sums.periodic and sums.total must be scalars; got shapes {periodic.shape} and {total.shape}")
    if not np.isfinite(total):
        raise ValueError(f"sums.total is {total:g}: {_CAUSE}")
    return float(ratio(periodic, total))


def _window_size(shape: tuple[int, ...], stride: int, window: int | None) -> tuple[int, int]:
    """Height and width of the windows, or a ValueError."""
    if len(shape) < 3:
        raise ValueError(f"maps must be [..., height, width, channels]; got shape {shape}")
    if stride < 2:
        raise ValueError(f"stride must be at least 2; got {stride}")
    h, w = shape[-3:-1]
    if min(h, w) < 2 * stride:
        raise ValueError(f"maps must be at least twice the stride, {2 * stride}, high and wide; got {h}x{w}")
    if window is None:
        return h - h % stride, w - w % stride
    if window % stride or not 2 * stride <= window <= min(h, w):
        raise ValueError(
            f"window must be a multiple of the stride, {stride}, from {2 * stride} up to the side of the maps, "
            f"{min(h, w)}; got {window}"
        )
    return window, window
