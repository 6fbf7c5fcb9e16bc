"""A dense conditional random field, which smooths probabilities over neighbours and pixels of similar colour.

Mean field over all pairs of pixels is quadratic in their number. Here the pairs are limited to a window around each
pixel, and computed by shifting the whole image, with one shifted copy in memory at a time.
"""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Real, Shaped


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
    ã_ij = a_ij / sqrt(d_i d_j) with d_i = Σ_{j ≠ i} a_ij, and likewise s, so that the effect of a weight does not
    depend on θ and the radius; without, ã = a as in the paper. (The authors' filter includes j = i in both sums.)

    All pixels are updated at once. If r covers the image, this is the CRF of all pairs; if θ_α is larger than r, the
    window cuts off much of the kernel. An iteration takes 4 r² + 4 r shifts.

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
        where: boolean `[B, H, W]`; a False pixel has no influence on others, even if it is NaN, and gets 0.

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
    if not jnp.issubdtype(probabilities.dtype, jnp.floating):
        raise TypeError(f"probabilities must be floating point; got {probabilities.dtype}")
    pixels = probabilities.shape[:3]
    if probabilities.ndim != 4 or images.ndim != 4 or images.shape[:3] != pixels:
        raise ValueError(
            "probabilities [batch, height, width, classes] need images [batch, height, width, channels] of the same "
            f"size; got shapes {probabilities.shape} and {images.shape}"
        )
    where = jnp.ones(pixels, bool) if where is None else jnp.asarray(where)
    if where.shape != pixels:
        raise ValueError(f"where must have the shape of the pixels, {pixels}; got {where.shape}")
    if radius < 0 or iterations < 0:
        raise ValueError(f"radius and iterations must not be negative; got {radius} and {iterations}")
    thetas = {"theta_alpha": theta_alpha, "theta_beta": theta_beta, "theta_gamma": theta_gamma}
    for name, value in thetas.items():
        if not isinstance(value, jax.core.Tracer) and not float(value) > 0:
            raise ValueError(f"{name} must be more than 0; got {float(value):g}")
    dtype = jnp.promote_types(probabilities.dtype, jnp.float32)
    weights = jnp.stack([jnp.asarray(weight, dtype) for weight in (appearance_weight, smoothness_weight)])
    widths = [jnp.asarray(value, dtype) for value in thetas.values()]
    arrays = (probabilities.astype(dtype), images.astype(dtype), where, weights, widths)
    return _mean_field(*arrays, radius=radius, iterations=iterations, symmetric=symmetric)


@partial(jax.jit, static_argnames=("radius", "iterations", "symmetric"))
def _mean_field(
    probabilities: Float[Array, "b h w c"],
    images: Float[Array, "b h w channels"],
    where: Bool[Array, "b h w"],
    weights: Float[Array, "2"],
    widths: list[Float[Array, ""]],
    *,
    radius: int,
    iterations: int,
    symmetric: bool,
) -> Float[Array, "b h w c"]:
    (*pixels, classes), channels, keep = probabilities.shape, images.shape[-1], where[..., None]
    # Masked before the maths and not only after, because 0 · NaN is NaN.
    colours = jnp.where(keep, images, 0)
    first = jnp.where(keep, probabilities, 1 / classes)
    log_p = jnp.log(jnp.maximum(first, 1e-37))
    theta_alpha, theta_beta, theta_gamma = widths
    # Offsets of the neighbours, `[n, 2]`, without those larger than the image.
    down, right = (range(-min(radius, side - 1), min(radius, side - 1) + 1) for side in pixels[1:])
    offsets = [offset for offset in product(down, right) if offset != (0, 0)]
    shifts = jnp.asarray(np.array(offsets, np.int32).reshape(-1, 2))

    def kernels(shift: Array, others: Array) -> Array:
        """Returns a and s of the pixels and those `shift` apart, `[B, H, W, 2]`."""
        squared = jnp.sum(shift.astype(colours.dtype) ** 2)
        apart = jnp.sum((others - colours) ** 2, axis=-1)
        appearance = jnp.exp(-squared / (2 * theta_alpha**2) - apart / (2 * theta_beta**2))
        smoothness = jnp.exp(-squared / (2 * theta_gamma**2))
        return jnp.stack([appearance, jnp.full_like(appearance, smoothness)], axis=-1)

    def sum_over_shifts(term, start: Array, maps: Array) -> Array:
        """Returns `start` plus the sum of `term(kernels, maps)` over all shifts; maps are 0 outside the image."""
        padded = jnp.pad(jnp.concatenate([colours, maps], axis=-1), ((0, 0), *[(radius, radius)] * 2, (0, 0)))

        def add(total: Array, shift: Array) -> tuple[Array, None]:
            corner = jnp.array([0, radius, radius, 0], jnp.int32).at[1:3].add(shift)
            shifted = jax.lax.dynamic_slice(padded, corner, (*pixels, padded.shape[-1]))
            return total + term(kernels(shift, shifted[..., :channels]), shifted[..., channels:]), None

        return jax.lax.scan(add, start, shifts)[0]

    # Factor of each pixel in both kernels; 0 for masked pixels.
    counted = keep.astype(colours.dtype)
    factors = jnp.concatenate([counted, counted], axis=-1)
    if symmetric:
        degree = sum_over_shifts(lambda kernel, exists: kernel * exists, 0 * factors, counted)
        factors *= jnp.where(degree > 0, jax.lax.rsqrt(jnp.where(degree > 0, degree, 1)), 0)
    weighted = factors * weights

    def message(kernel: Array, maps: Array) -> Array:
        return jnp.sum(weighted * maps[..., :2] * kernel, axis=-1, keepdims=True) * maps[..., 2:]

    def update(q: Array, _: None) -> tuple[Array, None]:
        return jax.nn.softmax(sum_over_shifts(message, log_p, jnp.concatenate([factors, q], axis=-1))), None

    q = jax.lax.scan(update, first, None, length=iterations)[0]
    return jnp.where(keep, q, 0)
