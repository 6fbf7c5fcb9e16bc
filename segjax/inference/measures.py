"""What a network's dropout heads say of every pixel, by name."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, Real

from segjax.inference.ensemble import head_uncertainty, linear_head
from segjax.models import logit_variance

SAMPLES = 30


def head_measures(
    variables: Any,
    features: Float[Array, "b h w f"],
    examples: Integer[ArrayLike, "b"],
    *,
    num_classes: int,
    rate: Real[ArrayLike, ""],
    samples: int = SAMPLES,
) -> dict[str, Float[Array, "b h w"]]:
    r"""The two uncertainties that dropout of a linear head's input adds to the entropy, from the features of one pass.

    .. math::
        v = \frac{1}{C} \sum_c \frac{r}{1 - r} \sum_i w_{ic}^2 x_i^2, \qquad
        I = H\left[\frac{1}{K} \sum_k p_k\right] - \frac{1}{K} \sum_k H[p_k]

    The variance of the logits is exact, that of K = ∞ masks. The mutual information has no closed form: it is that of
    K masks a channel, keyed by the image and the same in every call. A head of one logit z is taken as 0 and z; one
    that learned void too, without it.

    Args:
        variables: the network's, with `head/linear` in their parameters.
        features: x, `[B, H, W, F]`, any floating dtype, such as `Segmentation.features` of a clean pass.
        examples: `[B]`, the images' global indices.
        num_classes: C, without void.
        rate: r in [0, 1), a scalar; may be traced, and is then not checked.
        samples: K ≥ 2; static.

    Returns:
        "variance", squared logits, and "mutual information", nats; both ≥ 0, float32 at least.

    Raises:
        TypeError: features are not floating.
        ValueError: no `head/linear`, K < 2, r is not in [0, 1), or shapes do not fit.

    References:
        Wang and Manning, Fast dropout training, ICML 2013; Houlsby et al. (BALD), arXiv 1112.5745.

    >>> linear = {"kernel": jnp.ones((4, 1)), "bias": jnp.zeros(1)}
    >>> variables = {"params": {"head": {"linear": linear}}}
    >>> found = head_measures(variables, jnp.ones((1, 2, 3, 4)), jnp.arange(1), num_classes=2, rate=0.2)
    >>> {name: values.shape for name, values in found.items()}, float(found["variance"][0, 0, 0])
    ({'variance': (1, 2, 3), 'mutual information': (1, 2, 3)}, 1.0)
    """
    kernel, bias = linear_head(variables)
    kernel, bias = kernel[:, :num_classes], bias[:num_classes]
    variance = jnp.mean(logit_variance(features, kernel, rate), axis=-1)
    if kernel.shape[1] == 1:
        kernel, bias = jnp.pad(kernel, ((0, 0), (1, 0))), jnp.pad(bias, (1, 0))
    sampled = head_uncertainty(
        features, kernel, bias, jax.random.key(0), samples=samples, rate=rate, mask="channel", examples=examples
    )
    return {"variance": variance, "mutual information": sampled.mutual_information}
