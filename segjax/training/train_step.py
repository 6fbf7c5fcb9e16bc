"""The initial state of a run, and its training step: a pure function of (state, batch, hyperparameters).

The step is that of one device; `parallel` maps it.
"""

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from segjax.collectives import next_example, pmean
from segjax.data import VOID, label_set
from segjax.data.augment import augment, copy_paste, example_keys, paste_outliers
from segjax.inference.forward import Ensemble
from segjax.models import Network, RetinaNet
from segjax.training.config import ConfigError, input_shape
from segjax.training.fields import DETECTORS
from segjax.training.network import TrainState
from segjax.training.objective import (
    Hyperparams,
    gradient_budget,
    hparams_at,
    hparams_from_config,
    phases,
    targets,
)

# Folded into the run's key where augmentation folds in the step, which never gets this large.
_DROPOUT = np.uint32(2**32 - 1)


def task_of(config: ConfigDict) -> ModuleType:
    """Returns the module of the task of `config`: `training.detection`, `training.multilabel` or else `segmentation`.

    All have the functions `make_objective`, `make_truth`, `microbatch_shares`, `make_eval_step`, `score_batches`,
    `make_predictor` and `example_sheet`.
    """
    if config.data.box_classes:
        from segjax.training import detection  # loaded for detectors only

        return detection
    if config.data.multilabel:
        from segjax.training import multilabel  # loaded for classes that overlap only

        return multilabel
    from segjax.training import segmentation

    return segmentation


def init_state(config: ConfigDict, model: nn.Module | Ensemble) -> TrainState:
    """Returns the state before the first step, a pure function of `config.seed`.

    Each member of an ensemble has its own key for initialisation, augmentation and dropout. Member 0 uses the key of a
    single network. `checkpoint.with_pretrained` loads pretrained weights into the state.
    """
    key = jax.random.key(config.seed)
    if not isinstance(model, Ensemble):
        return _init_network(config, model, key)
    keys = [key, *(jax.random.fold_in(key, member) for member in range(1, model.members))]
    states = [_init_network(config, model.network, one) for one in keys]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *states)
    return stacked.replace(step=states[0].step, skipped=states[0].skipped)


def _init_network(config: ConfigDict, model: nn.Module, key: jax.Array) -> TrainState:
    init_key, run_key = jax.random.split(key)
    images = jnp.zeros((1, *input_shape(config)))
    # The mapped axis exists only inside the mapped step, and parameters do not depend on it. The prior is left out so
    # that a sweep over π compiles one initialisation.
    variables = _initial_variables(model.clone(axis_name=None, head_bias=None), init_key, images)
    if model.head_bias is not None:
        linear = variables["params"]["classification" if config.model.name in DETECTORS else "head"]["linear"]
        anchors = linear["bias"].size // model.num_classes  # per cell; 1 unless the network is a detector
        bias = np.tile(model.head_bias, anchors)
        linear["bias"] = jnp.asarray(bias, linear["bias"].dtype)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    averaged = None
    if config.training.ema_decay is not None:
        # Copies, because a buffer cannot be donated twice.
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


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optax transformation without the learning rate, which is traced and applied by the train step.

    Weight decay applies to kernels (arrays of two or more axes): decoupled in AdamW, added to the gradient in Adam and
    SGD.
    """
    options = config.optimizer
    decay = optax.add_decayed_weights(
        options.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    )
    direction = {
        "adamw": (optax.scale_by_adam(b1=options.momentum), decay),
        "adam": (decay, optax.scale_by_adam(b1=options.momentum)),
        "sgd": (decay, optax.trace(options.momentum)),
    }[options.name]
    clip = (optax.clip_by_global_norm(options.clip_norm),) if options.clip_norm else ()
    return optax.chain(*clip, *direction)


def schedule(config: ConfigDict) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Builds `f(peak, step)`: linear warm-up, then `optimizer.schedule`. All phases of a run share it but for the peak.

    "cosine" and "polynomial" (DeepLab's (1 - t)^0.9) end at 0 at the last step; "constant" stays.
    """
    steps = config.training.steps
    warmup = max(1, round(config.optimizer.warmup_fraction * steps))
    rest = max(1, steps - warmup)
    after = {
        "cosine": optax.cosine_decay_schedule(1.0, rest),
        "polynomial": optax.polynomial_schedule(1.0, 0.0, 0.9, rest),
        "constant": optax.constant_schedule(1.0),
    }[config.optimizer.schedule]
    shape = optax.join_schedules([optax.linear_schedule(1 / warmup, 1.0, warmup), after], [warmup])
    return lambda peak, step: peak * shape(step)


def learning_rate_at(step: int, config: ConfigDict) -> float:
    """Returns the learning rate of `step`, counted from 1; steps after the last have the last rate."""
    step = min(step, config.training.steps)
    peak = hparams_at(step, hparams_from_config(config), phases(config)).learning_rate
    return float(schedule(config)(peak, step - 1))


def learning_rate_leap(step: int, earlier: ConfigDict, config: ConfigDict) -> str:
    """Returns a warning if the learning rate leaps at `step`, from which a run is resumed; "" if it does not."""
    old, new = (learning_rate_at(step, each) for each in (earlier, config)) if step else (0, 0)
    if math.isclose(old, new, rel_tol=1e-3):
        return ""
    keep = "config.optimizer.schedule=constant --config.optimizer.warmup_fraction=0 --config.optimizer.learning_rate"
    return (
        f"warning: the learning rate of step {step} was {old:.3g}, and is {new:.3g} under the changed config. To "
        f"carry on at the old rate: --{keep}={old:.3g}"
    )


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


def rare_train_ids(config: ConfigDict) -> tuple[int | tuple[int, ...], ...]:
    """Returns the train ids of `augment.rare_classes`, one per class; () without rare crops and copy-paste.

    Of a class that overlaps others, they are those of all combinations with it.

    Raises:
      ConfigError: a name is not a class, or the data set has more than two classes and none is named.
    """
    names = tuple(config.augment.rare_classes)
    if config.augment.rare_crops is config.augment.copy_paste is None:
        return ()
    labels = label_set(config.data)
    if not names and labels.num_classes == 2 and not config.data.multilabel:
        return (labels.rare,)
    unknown = [name for name in names if name not in labels.names]
    if unknown or not names:
        raise ConfigError(
            f"config.augment.rare_classes must name classes of {config.data.name}, {', '.join(labels.names)}; got "
            f"{names!r}"
        )
    classes = [labels.names.index(name) for name in names]
    if labels.combinations is None:
        return tuple(classes)
    return tuple(tuple(np.flatnonzero(labels.combinations[:, index]).tolist()) for index in classes)


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
            rare = {"rare_classes": np.unique(np.hstack(rare_classes)).tolist(), "probability": hparams.copy_paste}

            def paste(images: jax.Array, moved: jax.Array) -> tuple[jax.Array, jax.Array]:
                return copy_paste(images, moved, *next_example((images, moved), axis_name), keys, **rare)

            # The condition makes XLA store the augmented images; else its CPU computes the pixels of a donor again.
            images, moved = jax.lax.cond(hparams.copy_paste > 0, paste, lambda *kept: kept, images, moved)
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
    augmentation, objective = make_augmentation(config, axis_name), task.make_objective(config, num_classes)
    num_microbatches, measures_budget = config.training.accumulate, config.training.gradient_budget
    has_dropout = isinstance(model, Network)

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
