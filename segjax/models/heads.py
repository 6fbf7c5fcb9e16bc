"""From the penultimate features to logits, how sure dropout leaves them, and what every network returns."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, Real

from segjax import checks
from segjax.models.dropout import checked_rate, keep_mask, mask_shape, one_key_an_image, threshold_and_scale
from segjax.models.layers import upsample_bilinear

DROPOUTS = ("none", "sampled", "analytic")


class Segmentation(NamedTuple):
    """What a network says of a batch of images; a pytree.

    Attributes:
        logits: `[B, H, W, C]`, float32 at least, of the head without dropout.
        mc_logits: `[K, B, H, W, C]`, one set of logits a dropout mask, or None.
        logit_variance: `[B, H, W, C]`, the variance of the logits under dropout in closed form, or None.
        features: `[B, H, W, F]`, what the linear head sees, in the network's compute dtype.
    """

    logits: Float[Array, "b h w c"]
    mc_logits: Float[Array, "k b h w c"] | None
    logit_variance: Float[Array, "b h w c"] | None
    features: Float[Array, "b h w f"]


class LinearHead(nn.Module):
    """A 1×1 convolution to logits, computed in float32 at least whatever the features' dtype.

    With `bias_init` = `losses.prior_bias(π)` and a small `kernel_stddev` the network starts out predicting the prior
    (focal loss paper, arXiv 1708.02002, section 4.1, which uses 0.01). No norm may follow: it would cancel the prior.

    Attributes:
        num_classes: C.
        bias_init: initial bias, one value a class; None: 0.
        kernel_stddev: standard deviation of the initial kernel, normal; None: sqrt(1 / fan-in) (LeCun).
        param_dtype: of the parameters.
    """

    num_classes: int
    bias_init: Sequence[float] | None = None
    kernel_stddev: float | None = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "b h w f"]) -> Float[Array, "b h w c"]:
        """`[B, H, W, F]` to logits `[B, H, W, num_classes]`.

        Raises:
            ValueError: `bias_init` has not one value a class.
        """
        bias = np.zeros(self.num_classes) if self.bias_init is None else np.asarray(self.bias_init)
        if bias.shape != (self.num_classes,):
            raise ValueError(f"the head's bias needs one value a class, {self.num_classes}; got {self.bias_init}")
        init = nn.initializers
        return nn.Dense(
            self.num_classes,
            kernel_init=init.lecun_normal() if self.kernel_stddev is None else init.normal(self.kernel_stddev),
            bias_init=lambda key, shape, dtype: jnp.asarray(bias, dtype),
            dtype=jnp.promote_types(features.dtype, jnp.float32),
            param_dtype=self.param_dtype,
            name="linear",
        )(features)

    def segment(
        self,
        features: Float[Array, "b h w f"],
        *,
        scale: int = 1,
        size: tuple[int, int] | None = None,
        dropout: str = "none",
        heads: int = 3,
        rate: Real[ArrayLike, ""] = 0.2,
        mask: str = "element",
        keys: Key[Array, "b"] | None = None,
    ) -> Segmentation:
        """The clean logits of `features`, and what dropout of the features makes of them with the same parameters.

        With `scale` above 1 all that is returned is of the bilinearly upsampled features. The logits are computed
        before the upsampling, which is the same for linear maps, and so are those of masks per channel. Masks per
        element and the analytic variance need the upsampled features themselves: H · W · F numbers. (The features are
        returned upsampled too: under jit that costs nothing where nobody uses them.)

        Args:
            features: `[B, h, w, F]`.
            scale: how much finer the logits are than the features.
            size: the height and width to crop to; None: `scale` times those of the features.
            dropout: "none"; "sampled": `mc_logits` (`head_samples`) where there are keys; "analytic": `logit_variance`.
            heads: K of "sampled".
            rate: of the dropout, in [0, 1); may be traced.
            mask: "element" or "channel", of "sampled".
            keys: `[B]`, an example's PRNG key, or None: no samples.
        """
        checks.choice("dropout", dropout, DROPOUTS)
        height, width = size or (scale * features.shape[1], scale * features.shape[2])

        def fine(x: Array) -> Array:
            return upsample_bilinear(x, scale)[..., :height, :width, :]

        whole = fine(features)
        logits = self(whole) if scale == 1 else fine(self(features))
        samples = variance = None
        linear = self.variables["params"]["linear"]
        if dropout == "sampled" and keys is not None:
            late = scale > 1 and mask == "channel"
            samples = head_samples(
                features if late else whole, linear["kernel"], linear["bias"], keys, heads=heads, rate=rate, mask=mask
            )
            samples = jax.vmap(fine)(samples) if late else samples
        if dropout == "analytic":
            variance = logit_variance(whole, linear["kernel"], rate)
        return Segmentation(logits, samples, variance, whole)


def head_samples(
    features: Float[Array, "b h w f"],
    kernel: Float[Array, "f c"],
    bias: Float[Array, "c"],
    keys: Key[Array, "b"],
    *,
    heads: int,
    rate: Real[ArrayLike, ""],
    mask: str = "element",
) -> Float[Array, "{heads} b h w c"]:
    r"""Logits of K dropout masks over the features, through one shared linear head: Monte Carlo without K networks.

    .. math:: z_k = W^\top x'_k + b, \qquad x'_k = \text{dropout}(x, p, \text{fold\_in}(\text{key}, k))

    Head k has its own masks, whatever K is: the first 3 of 30 heads are the 3 of 3. K masks per channel take F · K
    random numbers an image, masks per element H · W times as many, which is then most of the time. The heads are
    computed one after another, and K copies of the features never exist, in the backward pass neither. For prediction
    with large K, `segjax.inference.head_uncertainty` does not even hold K sets of logits.

    Args:
        features: x, `[B, H, W, F]`, any floating dtype; the product is computed in float32 at least.
        kernel: W, `[F, C]`.
        bias: b, `[C]`.
        keys: `[B]`, an example's PRNG key (`example_dropout_keys`).
        heads: K ≥ 1; static. Their unbiased variance needs 2.
        rate: p in [0, 1), a scalar; may be traced, and is then not checked.
        mask: "element" or "channel"; static.

    Returns:
        `[K, B, H, W, C]`, float32 at least. With p = 0 each equals the clean logits.

    Raises:
        ValueError: K < 1, p is not in [0, 1), `mask` is unknown, or there is not one key an image.

    References:
        Gal and Ghahramani, arXiv 1506.02142; Kendall et al., Bayesian SegNet, arXiv 1511.02680; Kendall and Gal, What
        Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?, arXiv 1703.04977.

    >>> from segjax.models import example_dropout_keys
    >>> keys = example_dropout_keys(jax.random.key(0), jnp.arange(2))
    >>> x, kernel, bias = jnp.ones((2, 5, 6, 4)), jnp.ones((4, 3)), jnp.zeros(3)
    >>> head_samples(x, kernel, bias, keys, heads=8, rate=0.2, mask="channel").shape
    (8, 2, 5, 6, 3)
    """
    one_key_an_image(keys, features)
    if heads < 1:
        raise ValueError(f"heads must be at least 1; got {heads}")
    threshold, scale = threshold_and_scale(checked_rate("rate", rate))
    x, kernel, bias = _widened(features, kernel, bias)
    kernel = kernel * scale.astype(kernel.dtype)
    head_keys = jax.vmap(lambda k: jax.vmap(jax.random.fold_in, (0, None))(keys, k))(jnp.arange(heads))

    # The backward pass thins the features again: what it keeps of a head is the boolean mask.
    thinned_product = jax.checkpoint(lambda keep, x, kernel: jnp.where(keep, x, 0) @ kernel, prevent_cse=False)

    def head(keys: Array) -> Array:
        return thinned_product(keep_mask(keys, mask_shape(mask, x), threshold), x, kernel) + bias

    return jax.lax.map(head, head_keys)


def logit_variance(
    features: Float[Array, "b h w f"], kernel: Float[Array, "f c"], rate: Real[ArrayLike, ""]
) -> Float[Array, "b h w c"]:
    r"""The variance of a linear head's logits under dropout of its input, exact: what K = ∞ heads would show.

    .. math:: \operatorname{Var} z_c = \operatorname{Var} \sum_i \frac{m_i}{1 - p} w_{ic} x_i
        = \frac{p}{1 - p} \sum_i w_{ic}^2 x_i^2

    The head is linear and the masks of different features independent, so the variances add, and infinitely many heads
    cost one more product of the head's size, no random number and no noise. The same for both kinds of mask: they
    differ in the covariance between pixels only. Gradients flow to the features, the kernel and p.

    Args:
        features: x, `[B, H, W, F]`, any floating dtype; computed in float32 at least.
        kernel: w, `[F, C]`.
        rate: p in [0, 1), a scalar; may be traced, and is then not checked.

    Returns:
        `[B, H, W, C]` ≥ 0, in squared logits, float32 at least; 0 where p = 0.

    Raises:
        ValueError: p is not in [0, 1).

    References:
        Wang and Manning, Fast dropout training, ICML 2013 (the closed form); Gal and Ghahramani, arXiv 1506.02142;
        Kendall and Gal, arXiv 1703.04977.

    >>> x, kernel = jnp.array([3.0, 1.0]).reshape(1, 1, 1, 2), jnp.array([[1.0], [2.0]])
    >>> print(logit_variance(x, kernel, 0.2)[0, 0, 0])  # 0.2 / 0.8 · (1 · 9 + 4 · 1)
    [3.25]
    """
    x, kernel = _widened(features, kernel)
    p = checked_rate("rate", rate).astype(x.dtype)
    return (x**2 @ kernel**2) * (p / (1 - p))


def _widened(features: Array, *parameters: Array) -> tuple[Array, ...]:
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    return tuple(array.astype(dtype) for array in (features, *parameters))
