"""The direction of a step, its length, and the phases of a run: what changes the traced hyperparameters as it goes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from segjax.training.objective import Hyperparams


class Phase(NamedTuple):
    """A stretch of a run with one crop and one peak learning rate, such as the three of a crop curriculum.

    Attributes:
      end: the step after which it is over.
      crop_fraction: side of the random crop as a share of the image's.
      learning_rate: the peak of the schedule.
    """

    end: int
    crop_fraction: float
    learning_rate: float


def phases(config: ConfigDict) -> tuple[Phase, ...]:
    """Those of `config.training.phases`; a run without them is one phase."""
    given = config.training.phases or (
        (config.augment.crop_fraction, config.training.steps, config.optimizer.learning_rate),
    )
    ends, result = 0, []
    for crop_fraction, steps, learning_rate in given:
        ends += steps
        result.append(Phase(ends, crop_fraction, learning_rate))
    return tuple(result)


def hparams_at(step: int, hparams: Hyperparams, plan: tuple[Phase, ...]) -> Hyperparams:
    """`hparams` as it is at `step` (the first is 1). Only values change: the step function is not compiled again."""
    phase = next(phase for phase in plan if step <= phase.end)
    return hparams._replace(
        crop_fraction=jnp.float32(phase.crop_fraction), learning_rate=jnp.float32(phase.learning_rate)
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The direction of a step; its length is `learning_rate_at`, which is traced, so that a sweep can vary it.

    Weight decay reaches kernels only (arrays of two or more axes): decoupled in AdamW, added to the gradient in Adam
    and SGD.
    """
    options = config.optimizer
    decay = optax.add_decayed_weights(
        options.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    )
    direction = {
        "adamw": lambda: (optax.scale_by_adam(b1=options.momentum), decay),
        "adam": lambda: (decay, optax.scale_by_adam(b1=options.momentum)),
        "sgd": lambda: (decay, optax.trace(options.momentum)),
    }[options.name]()
    clip = (optax.clip_by_global_norm(options.clip_norm),) if options.clip_norm else ()
    return optax.chain(*clip, *direction)


def learning_rate_at(config: ConfigDict) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`f(peak, step)`: linear warm-up over `warmup_fraction` of all steps, then what `optimizer.schedule` says.

    "cosine" and "polynomial" ((1 - t)^0.9, DeepLab's) fall to 0 at the last step; "constant" stays. The phases of a
    run share one schedule: each sets the peak.
    """
    steps = config.training.steps
    warmup = max(1, round(config.optimizer.warmup_fraction * steps))
    rest = max(1, steps - warmup)
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(1.0, rest),
        "polynomial": lambda: optax.polynomial_schedule(1.0, 0.0, 0.9, rest),
        "constant": lambda: optax.constant_schedule(1.0),
    }[config.optimizer.schedule]()
    shape = optax.join_schedules([optax.linear_schedule(1 / warmup, 1.0, warmup), after], [warmup])
    return lambda peak, step: peak * shape(step)
