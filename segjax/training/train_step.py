"""The training step of one device, a pure function of (state, batch, hyperparameters) that `parallel` maps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from segjax.collectives import next_example, pmean
from segjax.data.augment import augment, copy_paste, example_keys, paste_outliers
from segjax.data.labels import VOID
from segjax.inference.forward import Ensemble
from segjax.models import Network, RetinaNet
from segjax.training.objective import Hyperparams, gradient_budget, targets
from segjax.training.state import TrainState, make_optimizer, rare_train_ids, schedule, task_of

# Folded into the run's key where augmentation folds in the step, which never gets this large.
_DROPOUT = np.uint32(2**32 - 1)


def split(batch: Any, count: int) -> Any:
    """Splits a batch into microbatches: every array `[b, …]` becomes `[count, b / count, …]`.

    Example i goes to microbatch i modulo `count`, so each device splits its own part of a batch.
    """
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)


def accumulated(loss_and_gradients: Callable, params: Any, batch_stats: Any, microbatches: Any) -> tuple[Any, ...]:
    """Returns loss, parts, batch_stats and gradients, summed over the microbatches through one compiled body.

    `loss_and_gradients(params, batch_stats, *microbatch)` returns ((loss, (_, parts, batch_stats)), gradients). Each
    microbatch passes its `batch_stats` on to the next; `microbatches` is a tuple of arrays with that leading axis.
    """

    def add(carry, microbatch):
        batch_stats, total = carry
        (loss, (_, parts, batch_stats)), gradients = loss_and_gradients(params, batch_stats, *microbatch)
        return (batch_stats, jax.tree.map(jnp.add, total, (loss, parts, gradients))), None

    first = jax.tree.map(lambda x: x[0], microbatches)
    (loss, (_, parts, _)), gradients = jax.eval_shape(loss_and_gradients, params, batch_stats, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, parts, gradients))
    (batch_stats, (loss, parts, gradients)), _ = jax.lax.scan(add, (batch_stats, zeros), microbatches)
    return loss, parts, batch_stats, gradients


def make_augmentation(config: ConfigDict, axis_name: str | None) -> Callable:
    """Builds `augmentation(batch, keys, hparams) -> (images, labels, outliers)` for the `batch` of a training step.

    Crop, zoom, flip, rotation and colours, then copy-paste, then drawn fragments: `outliers` are their pixels, or None.
    """
    data, rare_classes, count = config.data, rare_train_ids(config), config.augment.outliers
    fixed = {name: config.augment[name] for name in ("flip", "rotation", "brightness", "contrast")}
    fixed |= {"scale": tuple(config.augment.scale), "size": tuple(data.size), "letterbox": data.letterbox}
    fixed |= {"mean": tuple(data.mean), "std": tuple(data.std)}
    if config.augment.rare_crops is not None:
        fixed |= {"rare_classes": rare_classes}

    def augmentation(batch: dict[str, jax.Array], keys: jax.Array, hparams: Hyperparams):
        # COCO's boxes come without labels.
        labels = batch["label"] if "label" in batch else jnp.zeros(batch["image"].shape[:3], jnp.uint8)
        options = {"sizes": batch.get("size"), "crop_fraction": hparams.crop_fraction, **fixed}
        if hparams.rare_crops is not None:
            options["rare_crops"] = hparams.rare_crops
        images, moved = augment(batch["image"], labels, keys, **options)
        if hparams.copy_paste is not None:
            donors = next_example((images, moved), axis_name)
            rare = {"rare_classes": np.unique(np.hstack(rare_classes)).tolist(), "probability": hparams.copy_paste}
            images, moved = copy_paste(images, moved, *donors, keys, **rare)
        if not count:
            return images, moved, None
        inside = None
        if data.letterbox:  # labels of 0 become void in the padding alone
            inside = augment(batch["image"], jnp.zeros_like(labels), keys, **options)[1] != VOID
        return paste_outliers(images, moved, keys, count, inside)

    return augmentation


def make_train_step(
    config: ConfigDict, model: Network | RetinaNet | Ensemble, num_classes: int, axis_name: str | None
) -> Callable:
    """Builds `step(state, batch, hparams) -> (state, measured)`.

    `batch` holds this device's arrays as the loader yields them: "image" `[b, H, W, C]`, "label" `[b, H, W]` or "boxes"
    `[b, N, 4]` and "classes" `[b, N]`, if images are padded "size" `[b, 2]`, and "index" `[b]`, the global example
    index that keys augmentation and dropout.
    `measured` has scalars over the global batch: loss and its parts, grad_norm, param_norm (of the new parameters),
    learning_rate; "budget" with `config.training.gradient_budget`; and "skipped", the number of steps skipped so far,
    with `config.training.skip_nonfinite`, which skips a step whose loss, grad_norm or param_norm is not finite.

    The members of an ensemble take a step one after another, with the same batch; a member that is not finite skips the
    step alone. `measured` then has the means over the members, the sum of their budgets, and "member_loss/0" etc.
    """
    if isinstance(model, Ensemble):
        return _member_steps(make_train_step(config, model.network, num_classes, axis_name), model.members)
    optimizer, learning_rate, task = make_optimizer(config), schedule(config), task_of(config)
    objective, has_dropout = task.make_objective(config, num_classes), isinstance(model, Network)
    augmentation = make_augmentation(config, axis_name)
    num_microbatches, measures_budget = config.training.accumulate, config.training.gradient_budget

    def step(state: TrainState, batch: dict[str, jax.Array], hparams: Hyperparams):
        keys = example_keys(state.key, state.step, batch["index"])
        images, labels, outliers = augmentation(batch, keys, hparams)
        truth = task.make_truth(batch, labels, keys, config, hparams.crop_fraction)
        dropout_key = jax.random.fold_in(jax.random.fold_in(state.key, _DROPOUT), state.step)

        def loss_of(params, batch_stats, images, truth, outliers, examples, share=None):
            dropout = {}
            if has_dropout:
                dropout = {"rate": hparams.dropout_rate, "deep_rate": hparams.deep_dropout_rate}
                dropout |= {"examples": examples, "rngs": {"dropout": dropout_key}}
            variables = {"params": params, "batch_stats": batch_stats}
            output, updated = model.apply(variables, images, train=True, mutable=["batch_stats"], **dropout)
            loss, parts = objective(output, truth, hparams, axis_name, share, outliers)
            return loss, (output, parts, updated.get("batch_stats", {}))

        loss_and_gradients = jax.value_and_grad(loss_of, has_aux=True)
        examples, before = (images, truth, outliers, batch["index"]), (state.params, state.batch_stats)
        if num_microbatches > 1:
            microbatches = split(examples, num_microbatches)
            _, truths, outliers_of, _ = microbatches
            shares = task.microbatch_shares(truths, config, num_classes, axis_name, outliers_of)
            loss, parts, batch_stats, gradients = accumulated(loss_and_gradients, *before, (*microbatches, shares))
        else:
            (loss, (output, parts, batch_stats)), gradients = loss_and_gradients(*before, *examples)
        gradients = pmean(gradients, axis_name)

        rate = learning_rate(hparams.learning_rate, state.step)
        directions, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, optax.tree.scale(-rate, directions))
        ema = state.ema
        if ema is not None:
            # The decay min(decay, (1 + t) / (10 + t)) forgets the initial parameters.
            t = (state.step + 1).astype(jnp.float32)
            decay = jnp.minimum(hparams.ema_decay, (1 + t) / (10 + t))
            ema = optax.incremental_update({"params": params, "batch_stats": batch_stats}, ema, 1 - decay)
        new_state = state.replace(
            step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema
        )
        norms = {"grad_norm": optax.tree.norm(gradients), "param_norm": optax.tree.norm(params)}
        measured = {"loss": loss, **parts, **norms, "learning_rate": rate}
        if state.skipped is not None:
            finite = jnp.isfinite(jnp.stack([loss, *norms.values()])).all()
            skip = state.replace(step=state.step + 1, skipped=state.skipped + 1)  # random keys move on
            new_state = jax.tree.map(partial(jnp.where, finite), new_state, skip)
            measured["skipped"] = new_state.skipped
        if measures_budget:
            gradient = jax.grad(
                lambda z: objective(output._replace(logits=z), truth, hparams, axis_name, outliers=outliers)[0]
            )(output.logits)
            labels, where = targets(truth, num_classes, config.objective.void)
            measured["budget"] = gradient_budget(gradient, output.logits, labels, where=where, axis_name=axis_name)
        return new_state, measured

    return step


def _member_steps(step: Callable, members: int) -> Callable:
    """Builds the step of an ensemble from the step of a network."""

    def step_members(state: TrainState, batch: dict[str, jax.Array], hparams: Hyperparams):
        def step_member(_: None, member: TrainState):
            return None, step(member.replace(step=state.step, skipped=state.skipped), batch, hparams)

        # Not `vmap`: convolutions with a kernel per member become grouped ones, which are many times slower. Unrolled
        # on a CPU, because XLA computes gradients of convolutions within loops a hundred times slower there.
        unroll = members if jax.default_backend() == "cpu" else 1
        own = state.replace(step=None, skipped=None)
        _, (states, measured) = jax.lax.scan(step_member, None, own, unroll=unroll)
        merged = {name: values.mean(axis=0) for name, values in measured.items() if name != "budget"}
        merged |= {f"member_loss/{member}": measured["loss"][member] for member in range(members)}
        if "budget" in measured:
            merged["budget"] = jax.tree.map(lambda sums: sums.sum(axis=0), measured["budget"])
        skipped = None
        if state.skipped is not None:
            skipped = merged["skipped"] = states.skipped.max()
        return states.replace(step=state.step + 1, skipped=skipped), merged

    return step_members
