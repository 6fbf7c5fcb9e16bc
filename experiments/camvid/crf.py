"""A dense conditional random field, which smooths probabilities over neighbours and pixels of similar colour.

Mean field over all pairs of pixels is quadratic in their number. Here the pairs are limited to a window around each
pixel, and computed by shifting the whole image, with one shifted copy in memory at a time.
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
    """Weights and widths of the two kernels; traced."""

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
    r"""Returns the mean field of a dense CRF with Potts compatibility, whose pairs are within (2r + 1)² pixels.

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

    All pixels are updated at once. If r covers the image, this is the CRF of all pairs. If θ_α is larger than r, the
    window cuts off much of the kernel, and r is the CRF's real reach. An iteration takes 4 r² + 4 r shifts; memory is a
    few copies of the image and the probabilities for any r.

    Args:
        probabilities: p, `[B, H, W, C]`, floating, ≥ 0. Values below 1e-37 count as 1e-37.
        images: I, `[B, H, W, channels]`, any real dtype, in the units of `theta_beta`: 0 … 255 for the default.
        radius: r ≥ 0, in pixels; static. 0: no pairs.
        iterations: number of iterations, ≥ 0; static.
        appearance_weight: w_1; like the scalars below it may be traced, so that a search compiles once.
        smoothness_weight: w_2.
        theta_alpha: θ_α > 0, pixels.
        theta_beta: θ_β > 0, units of colour.
        theta_gamma: θ_γ > 0, pixels.
        symmetric: normalise the kernels; static.
        where: boolean `[B, H, W]`; a False pixel has no influence on others, whatever its values, and gets 0.

    Returns:
        Q, `[B, H, W, C]`, at least float32, with sum 1 over the classes. An unmasked NaN gives NaN within its reach.

    Raises:
        TypeError: probabilities are not floating.
        ValueError: shapes do not fit, r or `iterations` is below 0, or a concrete θ is not positive.

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
    # Masked before the maths and not only after, because 0 · NaN is NaN.
    colours = jnp.where(keep, images, 0)
    first = jnp.where(keep, probabilities, 1 / probabilities.shape[-1])
    log_p = jnp.log(jnp.maximum(first, 1e-37))
    shifts = _shifts(radius, images.shape[1:3])
    channels = colours.shape[-1]

    def kernels(shift: Array, others: Array) -> tuple[Array, Array]:
        """Returns the appearance kernel `[B, H, W, 1]` of pixels `shift` apart, and the smoothness kernel, a scalar."""
        squared = jnp.sum(shift.astype(colours.dtype) ** 2)
        apart = jnp.sum((others - colours) ** 2, axis=-1, keepdims=True)
        appearance = jnp.exp(-squared / (2 * scales.theta_alpha**2) - apart / (2 * scales.theta_beta**2))
        return appearance, jnp.exp(-squared / (2 * scales.theta_gamma**2))

    def over_shifts(added, start: Array, maps: Array) -> Array:
        """Adds `added(shift, colours, maps)` over all shifts to `start`; outside the image, colours and maps are 0."""
        padded = jnp.pad(jnp.concatenate([colours, maps], axis=-1), ((0, 0), *[(radius, radius)] * 2, (0, 0)))

        def add(total: Array, shift: Array) -> tuple[Array, None]:
            corner = jnp.array([0, radius, radius, 0], jnp.int32).at[1:3].add(shift)
            there = jax.lax.dynamic_slice(padded, corner, (*colours.shape[:3], padded.shape[-1]))
            return total + added(shift, there[..., :channels], there[..., channels:]), None

        return jax.lax.scan(add, start, shifts)[0]

    def degree(shift: Array, there: Array, counted: Array) -> Array:
        appearance, smoothness = kernels(shift, there)
        return counted * jnp.concatenate([appearance, jnp.full_like(appearance, smoothness)], axis=-1)

    # Factor of each pixel in both kernels; 0 for masked pixels.
    counted = keep.astype(colours.dtype)
    factors = jnp.concatenate([counted, counted], axis=-1)
    if symmetric:
        total = over_shifts(degree, 0 * factors, counted)
        factors *= jnp.where(total > 0, jax.lax.rsqrt(jnp.where(total > 0, total, 1)), 0)
    weighted = factors * jnp.stack([scales.appearance_weight, scales.smoothness_weight])

    def message(shift: Array, there: Array, maps: Array) -> Array:
        appearance, smoothness = kernels(shift, there)
        others, q = maps[..., :2], maps[..., 2:]
        pair = weighted[..., :1] * others[..., :1] * appearance + weighted[..., 1:] * others[..., 1:] * smoothness
        return pair * q

    def update(q: Array, _: None) -> tuple[Array, None]:
        return jax.nn.softmax(over_shifts(message, log_p, jnp.concatenate([factors, q], axis=-1))), None

    q = jax.lax.scan(update, first, None, length=iterations)[0]
    return jnp.where(keep, q, 0)


def _shifts(radius: int, size: tuple[int, int]) -> Array:
    """Returns the offsets of a pixel's neighbours, `[n, 2]`, without those larger than an image of this size."""
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
