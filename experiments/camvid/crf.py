"""A dense conditional random field after the network: neighbours, and pixels of like colour, are asked for their label.

Mean field over all pairs of pixels of an image is quadratic in their number. Here every pixel talks to those of a
window around it: one shift of the whole image after another, with one shifted copy in memory at a time.
"""

from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Real, Shaped


class _Scales(NamedTuple):
    """The two kernels' weights and widths; traced."""

    appearance_weight: Array
    smoothness_weight: Array
    theta_alpha: Array
    theta_beta: Array
    theta_gamma: Array


def dense_crf(
    probabilities: Float[ArrayLike, "b h w c"],
    images: Shaped[ArrayLike, "b h w channels"],
    *,
    radius: int,
    iterations: int = 5,
    appearance_weight: Real[ArrayLike, ""] = 10.0,
    smoothness_weight: Real[ArrayLike, ""] = 3.0,
    theta_alpha: Real[ArrayLike, ""] = 80.0,
    theta_beta: Real[ArrayLike, ""] = 13.0,
    theta_gamma: Real[ArrayLike, ""] = 3.0,
    symmetric: bool = True,
    where: Bool[ArrayLike, "b h w"] | None = None,
) -> Float[Array, "b h w c"]:
    r"""Mean field of a dense CRF with Potts compatibility, its pairs cut off at a window of (2r + 1)² pixels.

    .. math::
        E(x) &= -\sum_i \log p_i(x_i) + \sum_{i < j} [x_i \ne x_j] \, k_{ij}, \qquad
        k_{ij} = w_1 \tilde a_{ij} + w_2 \tilde s_{ij}, \\
        a_{ij} &= \exp\left(-\frac{|r_i - r_j|^2}{2 θ_α^2} - \frac{|I_i - I_j|^2}{2 θ_β^2}\right), \qquad
        s_{ij} = \exp\left(-\frac{|r_i - r_j|^2}{2 θ_γ^2}\right), \\
        Q_i(l) &\leftarrow \operatorname{softmax}_l\Bigl(\log p_i(l) + \sum_{j \ne i} k_{ij} Q_j(l)\Bigr), \qquad Q = p
        \text{ at first}

    r are positions in pixels and I colours. With `symmetric` each kernel is normalised as in the authors' program,

    .. math:: \tilde a_{ij} = a_{ij} / \sqrt{d_i d_j}, \qquad d_i = \sum_{j \ne i} a_{ij}

    and likewise s, so that a weight means the same for any θ and radius; without, k̃ = k, which is the paper's formula.
    The authors' filter counts the pixel itself in d and in the message; here both leave it out, as the sums say.

    All pixels are updated at once. As r covers the image this is the CRF of all pairs. What the window leaves out is
    large where θ_α is larger than r: then r is the CRF's real reach. An iteration takes 4 r² + 4 r shifts, so time
    grows with r²; memory is a few copies of the image and the probabilities, whatever r.

    Args:
        probabilities: p, `[B, H, W, C]`, floating, ≥ 0, of each pixel. Below 1e-37 they are taken for that.
        images: I, `[B, H, W, channels]`, any real dtype, in the units of `theta_beta`: 0 … 255 for the default.
        radius: r ≥ 0, in pixels; static. 0: no pairs.
        iterations: ≥ 0; static.
        appearance_weight: w_1; this and the next are scalars and may be traced: a search compiles once.
        smoothness_weight: w_2.
        theta_alpha: θ_α > 0, pixels.
        theta_beta: θ_β > 0, units of colour.
        theta_gamma: θ_γ > 0, pixels.
        symmetric: whether the kernels are normalised; static.
        where: boolean `[B, H, W]`; False: no such pixel: it tells others nothing, whatever its values, and gets 0.

    Returns:
        Q, `[B, H, W, C]`, float32 at least, that adds up to 1. NaN where a NaN is kept, and where it is heard of.

    Raises:
        TypeError: probabilities are not floating.
        ValueError: shapes that do not fit, r or `iterations` below 0, or a θ that is known and not positive.

    References:
        Krähenbühl and Koltun, Efficient inference in fully connected CRFs with Gaussian edge potentials, arXiv
        1210.5644 (the defaults are those of their program); Teichmann and Cipolla, Convolutional CRFs, arXiv 1805.04777
        (the window).

    >>> images = jnp.zeros((1, 3, 3, 3)).at[:, :, 2].set(255.0)  # black, and a white column
    >>> p = jnp.full((1, 3, 3, 2), jnp.array([0.9, 0.1])).at[0, 1, 1].set(jnp.array([0.4, 0.6]))
    >>> p = p.at[:, :, 2].set(jnp.array([0.1, 0.9]))
    >>> dense_crf(p, images, radius=2, smoothness_weight=0.0)[0].argmax(-1)
    Array([[0, 0, 1],
           [0, 0, 1],
           [0, 0, 1]], dtype=int32)
    """
    probabilities, images = jnp.asarray(probabilities), jnp.asarray(images)
    where = None if where is None else jnp.asarray(where)
    _check(probabilities, images, where, radius, iterations)
    dtype = jnp.promote_types(probabilities.dtype, jnp.float32)
    scales = _Scales(appearance_weight, smoothness_weight, theta_alpha, theta_beta, theta_gamma)
    for name, value in scales._asdict().items():
        if name.startswith("theta") and not isinstance(value, jax.core.Tracer) and not float(value) > 0:
            raise ValueError(f"{name} must be more than 0; got {float(value):g}")
    scales = _Scales(*(jnp.asarray(value, dtype) for value in scales))
    exists = jnp.ones(probabilities.shape[:3], bool) if where is None else where
    return _mean_field(
        probabilities.astype(dtype),
        images.astype(dtype),
        exists,
        scales,
        radius=radius,
        iterations=iterations,
        symmetric=symmetric,
    )


@partial(jax.jit, static_argnames=("radius", "iterations", "symmetric"))
def _mean_field(
    probabilities: Float[Array, "b h w c"],
    images: Float[Array, "b h w channels"],
    exists: Bool[Array, "b h w"],
    scales: _Scales,
    *,
    radius: int,
    iterations: int,
    symmetric: bool,
) -> Float[Array, "b h w c"]:
    keep = exists[..., None]
    # Before the mathematics and not only after: 0 · NaN is NaN.
    colours = jnp.where(keep, images, 0)
    first = jnp.where(keep, probabilities, 1 / probabilities.shape[-1])
    log_p = jnp.log(jnp.maximum(first, 1e-37))
    shifts = _shifts(radius, images.shape[1:3])
    channels = colours.shape[-1]

    def kernels(shift: Array, others: Array) -> tuple[Array, Array]:
        """Both, of every pixel and the one at `shift` from it: `[B, H, W, 1]`, and one of position alone."""
        squared = jnp.sum(shift.astype(colours.dtype) ** 2)
        apart = jnp.sum((others - colours) ** 2, axis=-1, keepdims=True)
        appearance = jnp.exp(-squared / (2 * scales.theta_alpha**2) - apart / (2 * scales.theta_beta**2))
        return appearance, jnp.exp(-squared / (2 * scales.theta_gamma**2))

    def over_shifts(added, start: Array, maps: Array) -> Array:
        """`start` and what `added(shift, colours, maps)` says of all pixels' neighbours, outside the image 0."""
        padded = jnp.pad(jnp.concatenate([colours, maps], axis=-1), ((0, 0), *[(radius, radius)] * 2, (0, 0)))

        def add(total: Array, shift: Array) -> tuple[Array, None]:
            corner = jnp.array([0, radius, radius, 0], jnp.int32).at[1:3].add(shift)
            there = jax.lax.dynamic_slice(padded, corner, (*colours.shape[:3], padded.shape[-1]))
            return total + added(shift, there[..., :channels], there[..., channels:]), None

        return jax.lax.scan(add, start, shifts)[0]

    def degree(shift: Array, there: Array, counted: Array) -> Array:
        appearance, smoothness = kernels(shift, there)
        return counted * jnp.concatenate([appearance, jnp.full_like(appearance, smoothness)], axis=-1)

    # How loud a pixel speaks and hears, by each kernel: one that does not exist, or is outside, not at all.
    counted = keep.astype(colours.dtype)
    loudness = jnp.concatenate([counted, counted], axis=-1)
    if symmetric:
        total = over_shifts(degree, 0 * loudness, counted)
        loudness *= jnp.where(total > 0, jax.lax.rsqrt(jnp.where(total > 0, total, 1)), 0)
    weighted = loudness * jnp.stack([scales.appearance_weight, scales.smoothness_weight])

    def message(shift: Array, there: Array, maps: Array) -> Array:
        appearance, smoothness = kernels(shift, there)
        speaks = maps[..., :2]
        pair = weighted[..., :1] * speaks[..., :1] * appearance + weighted[..., 1:] * speaks[..., 1:] * smoothness
        return pair * maps[..., 2:]

    def update(q: Array, _: None) -> tuple[Array, None]:
        heard = over_shifts(message, log_p, jnp.concatenate([loudness, q], axis=-1))
        return jax.nn.softmax(heard), None

    q = jax.lax.scan(update, first, None, length=iterations)[0]
    return jnp.where(keep, q, 0)


def _shifts(radius: int, size: tuple[int, int]) -> Array:
    """`[n, 2]`: the neighbours of a pixel, rows and columns, without those that an image of this size cannot have."""
    down, right = (range(-min(radius, side - 1), min(radius, side - 1) + 1) for side in size)
    found = [shift for shift in product(down, right) if shift != (0, 0)]
    return jnp.asarray(np.array(found, np.int32).reshape(-1, 2))


def _check(probabilities: Array, images: Array, where: Array | None, radius: int, iterations: int) -> None:
    if not jnp.issubdtype(probabilities.dtype, jnp.floating):
        raise TypeError(f"probabilities must be floating point; got {probabilities.dtype}")
    if probabilities.ndim != 4 or images.ndim != 4 or probabilities.shape[:3] != images.shape[:3]:
        raise ValueError(
            "probabilities [batch, height, width, classes] need images [batch, height, width, channels] of the same "
            f"size; got shapes {probabilities.shape} and {images.shape}"
        )
    if where is not None and where.shape != probabilities.shape[:3]:
        raise ValueError(f"where must have the shape of the pixels, {probabilities.shape[:3]}; got {where.shape}")
    if radius < 0 or iterations < 0:
        raise ValueError(f"radius and iterations must not be negative; got {radius} and {iterations}")
