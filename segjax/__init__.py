"""Semantic segmentation in JAX where the interesting pixels are rare and the model must know when it does not know.

`segjax.losses` and `segjax.metrics` are pure functions that need jax, chex and jaxtyping alone; everything else comes
with the extra `segjax[train]`.
"""
