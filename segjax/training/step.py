"""What one device does in a step: pure functions of (state, batch, hyperparameters), mapped by `parallel`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from segjax import models
from segjax.collectives import pmean
from segjax.data.augment import augment, example_keys
from segjax.training.accumulation import accumulated, make_shares, split
from segjax.training.budget import GradientBudget, gradient_budget
from segjax.training.defaults import ConfigError
from segjax.training.objective import Hyper, make_objective, targets
from segjax.training.optimizer import learning_rate_at, make_optimizer

# Folded into the run's key in a step's place, which never gets there: the dropout's numbers are not the augmentation's.
_DROPOUT = np.uint32(2**32 - 1)


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step (the loader's position is saved beside it).

    Attributes:
      step: int32 scalar, how many steps were taken.
      params: the model's parameters, float32.
      batch_stats: running statistics of batch norm; empty for other norms.
      opt_state: optax's state.
      ema: running means of `params` and `batch_stats`, under these names, which evaluation then uses; or None.
      skipped: int32 scalar, how many of the steps were left out as not finite; None where none may be.
      key: the run's PRNG key; never changes, every use folds in (step, global example index).
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    skipped: Any
    key: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is evaluated with."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def init_state(config: ConfigDict, model: nn.Module, *, pretrained: bool = False) -> TrainState:
    """The state before the first step: a pure function of `config.seed`.

    With `pretrained` the encoder is that of the file `config.model.pretrained`, where one is named. (What restores a
    checkpoint into the state has no need of the file.)

    Raises:
      ConfigError: the file is not there, cannot be read, or is not of this encoder.
    """
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    images = jnp.zeros((1, *config.data.size, config.data.channels))
    # Parameters do not depend on the mapped axis, and the axis exists only inside the mapped step. The prior is a value
    # and no program either: a sweep over π compiles one initialisation.
    variables = _initial_variables(model.clone(axis_name=None, head_bias=None), init_key, images)
    if pretrained and config.model.pretrained:
        try:
            variables = models.load_encoder(config.model.pretrained, variables)
        except (OSError, ImportError, ValueError) as error:
            raise ConfigError(f"config.model.pretrained: {error}") from error
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    if model.head_bias is not None:
        linear = params["head"]["linear"]
        linear["bias"] = jnp.asarray(model.head_bias, linear["bias"].dtype)
    averaged = None
    if config.training.ema_decay is not None:
        # Copies: a donated buffer must not be handed over twice.
        averaged = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        opt_state=make_optimizer(config).init(params),
        ema=averaged,
        skipped=jnp.int32(0) if config.training.skip_nonfinite else None,
        key=run_key,
    )


@partial(jax.jit, static_argnums=0)
def _initial_variables(model: nn.Module, key: jax.Array, images: jax.Array) -> dict[str, Any]:
    return model.init(key, images, train=False)


def make_train_step(config: ConfigDict, model: nn.Module, num_classes: int, axis_name: str | None) -> Callable:
    """Builds `step(state, batch, hyper) -> (state, measured)`.

    `batch` holds this device's uint8 "image" `[b, H, W, C]` and "label" `[b, H, W]` as the loader hands them over, and
    "index" `[b]`, the global example index that keys augmentation and dropout. `measured` are scalars over the global
    batch: loss and its parts, grad_norm, param_norm (of the new parameters), learning_rate; with
    `config.training.gradient_budget` also "budget", what `budget.gradient_budget` says of the loss; with
    `config.training.skip_nonfinite` also "skipped", how many steps were left out so far, as this one is if one of loss,
    grad_norm and param_norm is not finite.
    """
    objective = make_objective(config, num_classes)
    optimizer = make_optimizer(config)
    learning_rate = learning_rate_at(config)
    options, measures_budget = config.augment, config.training.gradient_budget
    picture = {"size": tuple(config.data.size), "mean": tuple(config.data.mean), "std": tuple(config.data.std)}

    def budget_of(output: models.Segmentation, labels: jax.Array, hyper: Hyper) -> GradientBudget:
        gradient = jax.grad(lambda z: objective(output._replace(logits=z), labels, hyper, axis_name)[0])(output.logits)
        labels, where = targets(labels, num_classes, config.objective.void)
        classes = max(output.logits.shape[-1], 2)
        return gradient_budget(gradient, output.logits, labels, num_classes=classes, where=where, axis_name=axis_name)

    pieces, shares = config.training.accumulate, make_shares(config, num_classes)

    def step(state: TrainState, batch: dict[str, jax.Array], hyper: Hyper):
        images, labels = augment(
            batch["image"],
            batch["label"],
            example_keys(state.key, state.step, batch["index"]),
            crop_fraction=hyper.crop_fraction,
            flip=options.flip,
            scale=tuple(options.scale),
            rotation=options.rotation,
            brightness=options.brightness,
            contrast=options.contrast,
            **picture,
        )
        dropout_key = jax.random.fold_in(jax.random.fold_in(state.key, _DROPOUT), state.step)

        def loss_of(params, batch_stats, images, labels, examples, share=None):
            output, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                rate=hyper.dropout_rate,
                deep_rate=hyper.deep_dropout_rate,
                examples=examples,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
            loss, parts = objective(output, labels, hyper, axis_name, share)
            return loss, (output, parts, updated.get("batch_stats", {}))

        loss_and_gradients = jax.value_and_grad(loss_of, has_aux=True)
        data, before = (images, labels, batch["index"]), (state.params, state.batch_stats)
        if pieces > 1:
            cut = split(data, pieces)
            loss, parts, batch_stats, gradients = accumulated(
                loss_and_gradients, *before, (*cut, shares(cut[1], axis_name))
            )
        else:
            (loss, (output, parts, batch_stats)), gradients = loss_and_gradients(*before, *data)
        gradients = pmean(gradients, axis_name)
        directions, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        rate = learning_rate(hyper.learning_rate, state.step)
        new_state = TrainState(
            step=state.step + 1,
            params=jax.tree.map(lambda p, d: p - rate * d, state.params, directions),
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=state.ema,
            skipped=state.skipped,
            key=state.key,
        )
        if hyper.ema_decay is not None:
            new_state = new_state.replace(ema=averaged(new_state, hyper.ema_decay))
        norms = {"grad_norm": optax.tree.norm(gradients), "param_norm": optax.tree.norm(new_state.params)}
        measured = {"loss": loss, **parts, **norms, "learning_rate": rate}
        if state.skipped is not None:
            new_state = only_if(jnp.isfinite(jnp.stack([loss, *norms.values()])).all(), new_state, state)
            measured["skipped"] = new_state.skipped
        if measures_budget:
            measured["budget"] = budget_of(output, labels, hyper)
        return new_state, measured

    return step


def averaged(state: TrainState, decay: jax.Array) -> dict[str, Any]:
    """The next running means; young ones forget faster, min(decay, (1 + t) / (10 + t)), or the start would linger."""
    t = state.step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + t) / (10 + t))
    new = {"params": state.params, "batch_stats": state.batch_stats}
    return jax.tree.map(lambda mean, now: mean + (1 - decay) * (now - mean), state.ema, new)


def only_if(sound: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """`new` where `sound`; else `old` one step and one skipped step on, so that the next batch has its own numbers."""
    kept = old.replace(step=old.step + 1, skipped=old.skipped + 1)
    chosen = jax.tree.map(lambda n, o: jnp.where(sound, n, o), new.replace(key=None), kept.replace(key=None))
    return chosen.replace(key=old.key)
