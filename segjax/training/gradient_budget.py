"""The gradient budget: which pixels the gradient of a loss comes from, by class and by whether they are easy."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Integer, Real

from segjax import checks, losses
from segjax.collectives import psum

HARD, EASY = 0, 1
_INVALID = int(np.iinfo(np.int32).min)


class GradientBudget(NamedTuple):
    """What `gradient_budget` adds up; budgets of several batches add too.

    Attributes:
        gradient: `[C, 2]`, the summed |∂L/∂z| of the pixels of each class, column 0 of the hard ones, 1 of the easy.
        pixels: int32 `[C, 2]`, how many pixels these are.
    """

    gradient: Float[jax.Array | np.ndarray, "classes 2"]
    pixels: Int[jax.Array | np.ndarray, "classes 2"]


def gradient_budget(
    gradient: Float[ArrayLike, "*pixels outputs"],
    logits: Float[ArrayLike, "*pixels outputs"],
    labels: Integer[ArrayLike, "*pixels"],
    *,
    num_classes: int,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    easy: Real[ArrayLike, ""] = 0.9,
    axis_name: Hashable | None = None,
) -> GradientBudget:
    r"""Sums of the gradient with respect to the logits, by the pixels' class and by whether they are easy.

    .. math::
        G_{ce} = \sum_{i:\; y_i = c,\; [p_i > easy] = e} g_i, \qquad
        g_i = \sum_j \left| \frac{\partial L}{\partial z_{ij}} \right|

    over the kept pixels i of all devices, with logits z, labels y and p_i the probability of the pixel's own class: the
    softmax's, or with one logit a pixel σ(z) for class 1 and σ(-z) for class 0. The loss L is whatever the gradient was
    taken of: its weights, its focus and its penalties are in it.

    Only shares of the whole mean something (`budget_shares`): the scale is the reduction's, and inside `jax.pmap` the
    gradient of a global loss is as many times too large as there are devices, until it is averaged.

    Args:
        gradient: ∂L/∂z, `[..., C]`, or `[..., 1]` for the sigmoid losses.
        logits: z, the same shape.
        labels: y, integers in [0, C), `[...]`.
        num_classes: C, static: the number of logits, or 2 where there is one logit.
        where: boolean `[...]`, broadcastable; False: no such pixel, whatever its label, logits and gradient.
        easy: in [0, 1], a scalar: a pixel is easy if its own class has a larger probability than this. May be traced.
        axis_name: the mapped device axis, or None under `jit`.

    Returns:
        A `GradientBudget`: the sums, at least float32, and the counts of the pixels. If `where` keeps a label outside
        [0, C), all sums are NaN and all counts -2^31. A kept NaN in the gradient is NaN in the sum of its bin; a kept
        NaN in the logits counts as hard.

    Raises:
        TypeError: gradient or logits are not floating, labels not integers, `where` not boolean.
        ValueError: shapes do not fit, C is not what the logits say, or `easy` is outside [0, 1] (where it has a value:
            not when traced).

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002: easy negatives overwhelm the gradient.

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> from segjax import losses
    >>> logits = jnp.array([[-3.0], [-3.0], [-3.0], [-1.0], [-3.0]])
    >>> labels = jnp.array([0, 0, 0, 0, 1])  # the last pixel is the rare one, and missed
    >>> loss = lambda z: losses.mean(losses.sigmoid_cross_entropy(z[:, 0], labels))
    >>> budget = gradient_budget(jax.grad(loss)(logits), logits, labels, num_classes=2)
    >>> print(np.asarray(budget.gradient, np.float64).round(3))
    [[0.054 0.028]
     [0.191 0.   ]]
    >>> print(budget.pixels)
    [[1 3]
     [1 0]]
    """
    logits, gradient = checks.floating("logits", logits), checks.floating("gradient", gradient)
    checks.same_shape("gradient", gradient.shape, "logits", logits.shape)
    outputs = logits.shape[-1] if logits.ndim else 0
    if (2 if outputs == 1 else outputs) != num_classes or num_classes < 2:
        raise ValueError(
            f"num_classes must be 2 for one logit a pixel, else their number; got {num_classes} for logits of shape "
            f"{logits.shape}"
        )
    labels = checks.integers("labels", labels)
    checks.same_shape("labels", labels.shape, "logits without their class axis", logits.shape[:-1])
    easy = checks.scalar("easy", easy, logits.dtype, 0.0, 1.0)
    keep = checks.mask("where", True if where is None else where, labels.shape)
    if outputs == 1:
        cross_entropy = losses.sigmoid_cross_entropy(logits[..., 0], labels, where=keep)
    else:
        cross_entropy = losses.softmax_cross_entropy(logits, labels, where=keep)
    strength = jnp.sum(jnp.where(keep[..., None], jnp.abs(gradient), 0), axis=-1)
    is_easy = cross_entropy < -jnp.log(easy)  # -log p < -log easy: the loss never forms p, which rounds to 1
    place = labels * 2 + is_easy.astype(labels.dtype)
    places = jax.lax.broadcasted_iota(labels.dtype, (*labels.shape, 2 * num_classes), labels.ndim)
    inside = keep[..., None] & (place[..., None] == places)
    valid = psum(jnp.sum(keep & ((labels < 0) | (labels >= num_classes)), dtype=jnp.int32), axis_name) == 0
    sums = psum(_over_pixels(jnp.where(inside, strength[..., None], 0)), axis_name)
    counts = psum(_over_pixels(inside.astype(jnp.int32)), axis_name)
    return GradientBudget(
        jnp.where(valid, sums, jnp.nan).reshape(num_classes, 2),
        jnp.where(valid, counts, _INVALID).reshape(num_classes, 2),
    )


def budget_shares(
    amounts: Float[ArrayLike, "classes 2"] | Integer[ArrayLike, "classes 2"], rare: Sequence[int]
) -> dict[str, float]:
    r"""Shares of the whole: easy background, hard background, and the rare classes. Host code.

    .. math::
        s_{easy} = \frac{\sum_{c \notin rare} G_{c1}}{\sum_{ce} G_{ce}}, \qquad
        s_{hard} = \frac{\sum_{c \notin rare} G_{c0}}{\sum_{ce} G_{ce}}, \qquad
        s_{rare} = \frac{\sum_{c \in rare} \left(G_{c0} + G_{c1}\right)}{\sum_{ce} G_{ce}}

    Args:
        amounts: G, `[C, 2]`: a budget's `gradient`, or its `pixels`, to say "so few pixels have so much of it".
        rare: the classes that are rare, integers in [0, C); all others are background.

    Returns:
        "easy background", "hard background" and "rare", which sum to 1; NaN each if the whole is 0 (an all-void batch,
        or no gradient left) or the budget says that a label was no class.

    Raises:
        TypeError: `amounts` is traced.
        ValueError: `amounts` is not `[C, 2]`, or `rare` names no class.

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002.

    >>> import numpy as np
    >>> budget_shares(np.array([[2.0, 5.0], [1.0, 0.0]]), rare=[1])
    {'easy background': 0.625, 'hard background': 0.25, 'rare': 0.125}
    """
    shares = _shares("amounts", amounts)
    if not rare or not all(0 <= c < len(shares) for c in rare):
        raise ValueError(f"rare must name classes in 0..{len(shares) - 1}, at least one; got {list(rare)}")
    is_rare = np.isin(np.arange(len(shares)), list(rare))
    return {
        "easy background": float(shares[~is_rare, EASY].sum()),
        "hard background": float(shares[~is_rare, HARD].sum()),
        "rare": float(shares[is_rare].sum()),
    }


def budget_scalars(budget: GradientBudget, names: Sequence[str]) -> dict[str, float]:
    """The shares of the whole, by name, for a log. Host code.

    Args:
        budget: `gradient_budget`'s, one device's copy.
        names: the classes' names, in their order; what comes after the last class is not read.

    Returns:
        "budget/NAME/easy" and "budget/NAME/hard" for each class, its shares of the gradient, and
        "budget_pixels/NAME/easy" and "…/hard", its shares of the pixels. NaN as in `budget_shares`.

    Raises:
        TypeError: the budget is traced.
        ValueError: fewer names than classes.

    >>> import numpy as np
    >>> budget = GradientBudget(np.array([[2.0, 5.0], [1.0, 0.0]]), np.array([[1, 98], [1, 0]]))
    >>> scalars = budget_scalars(budget, ["road", "debris"])
    >>> scalars["budget/debris/hard"], scalars["budget_pixels/debris/hard"]
    (0.125, 0.01)
    """
    named = {}
    for prefix, amounts in (("budget", budget.gradient), ("budget_pixels", budget.pixels)):
        shares = _shares(prefix, amounts)
        if len(names) < len(shares):
            raise ValueError(f"names must have one name per class, {len(shares)}; got {list(names)}")
        for name, (hard, easy) in zip(names, shares.tolist(), strict=False):
            named |= {f"{prefix}/{name}/easy": easy, f"{prefix}/{name}/hard": hard}
    return named


def _over_pixels(values: jax.Array) -> jax.Array:
    # Rows first: one running float32 sum over millions of pixels would drop the small gradients of easy ones.
    while values.ndim > 1:
        values = jnp.sum(values, axis=-2)
    return values


def _shares(name: str, amounts: ArrayLike) -> np.ndarray:
    """`[C, 2]` over its sum, in float64; all NaN where there is nothing to share or the budget is invalid."""
    given = checks.host(name, amounts).astype(np.float64)
    if given.ndim != 2 or given.shape[1] != 2:
        raise ValueError(f"{name} must be [classes, 2]; got shape {given.shape}")
    total = given.sum()
    return given / total if total > 0 else np.full_like(given, np.nan)
