"""Softmax logits and labels as calibration and the proper scores take them, and log probabilities. Private."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from segjax import checks


def log_softmax(logits: Float[Array, "*pixels classes"]) -> Float[Array, "*pixels classes"]:
    """Log probabilities that keep their digits near 0, where JAX's round to 0 from 1 - p = 6e-8 on. Private."""
    top = jnp.argmax(logits, axis=-1, keepdims=True).astype(jnp.int32)
    is_top = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == top
    shifted = logits - jnp.sum(jnp.where(is_top, logits, 0), axis=-1, keepdims=True)
    return shifted - jnp.log1p(jnp.sum(jnp.where(is_top, 0, jnp.exp(shifted)), axis=-1, keepdims=True))


def softmax_inputs(logits, labels, where):
    """Checked and widened, and whether each pixel can be counted. The logits are not cleaned of NaN: see their use."""
    logits = checks.floating("logits", logits)
    labels = checks.integers("labels", labels)
    if logits.ndim == 0 or logits.shape[-1] < 2:
        raise ValueError(
            f"logits must be [..., classes] with at least 2 classes, class last; got shape {logits.shape}. "
            "For one logit z per pixel stack 0 and z"
        )
    checks.same_shape("labels", labels.shape, "logits without their class axis", logits.shape[:-1])
    keep = None if where is None else checks.mask("where", where, labels.shape)
    if keep is not None:
        labels = jnp.where(keep, labels, 0)
    valid = (labels >= 0) & (labels < logits.shape[-1]) & jnp.isfinite(jnp.max(logits, axis=-1))
    return logits, labels.astype(jnp.int32), valid, keep
