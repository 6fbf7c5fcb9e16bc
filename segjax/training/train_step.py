"""The training step of one device, a pure function of (state, batch, hyperparameters) that `parallel` maps."""

import math
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

from segjax import losses, models
from segjax.collectives import pmean
from segjax.data.augment import augment, example_keys, paste_outliers
from segjax.data.labels import VOID
from segjax.inference import Ensemble
from segjax.training.config import DETECTORS, NETWORKS, SHARED_ARGUMENTS, ConfigError, input_shape
from segjax.training.objective import (
    Hyperparams,
    gradient_budget,
    hparams_at,
    hparams_from_config,
    make_objective,
    microbatch_shares,
    num_outputs,
    phases,
    targets,
)

# Folded into the run's key where augmentation folds in the step, which never gets this large.
_DROPOUT = np.uint32(2**32 - 1)


def make_model(
    config: ConfigDict, num_classes: int, axis_name: str | None = None
) -> models.Network | models.RetinaNet | Ensemble:
    """Returns the network of `config`, or its ensemble, for a data set of `num_classes` classes.

    Raises:
      ConfigError: a data set of one class, a binary loss on one of more than two, or a prior of the wrong length.
    """
    loss, prior, outputs = config.objective.loss, tuple(config.model.prior), num_outputs(config, num_classes)
    binary, data, is_detector = outputs == 1, config.data.name, config.model.name in DETECTORS
    if num_classes < 2:
        raise ConfigError(
            f"{data} has {num_classes} class; expected at least 2: name the background too, as in "
            "config.data.class_names = ('background', 'object')"
        )
    if binary and num_classes != 2 and not is_detector:
        raise ConfigError(
            f"config.objective.loss = {loss!r} separates one rare class from the rest and needs a data set of 2 "
            f"classes; {data} has {num_classes}"
        )
    if prior and len(prior) != outputs:
        raise ConfigError(f"config.model.prior needs {outputs} value(s) for {loss}; got {prior}")
    weights, background = tuple(config.objective.class_weights), config.objective.background
    if weights and len(weights) != outputs:
        void = ", void last" if config.objective.void == "class" else ""
        raise ConfigError(
            f"config.objective.class_weights needs {outputs} values, one per output of {data}{void}; got {weights}"
        )
    if background is not None and not 0 <= background < num_classes:
        raise ConfigError(
            f"config.objective.background must be a class of {data}, 0 to {num_classes - 1}; got {background}"
        )
    head_bias = None
    if prior:  # in float64, where 1 - π of a rare class with π = 1e-8 is not rounded to 1
        bias = (losses.prior_bias if binary else losses.prior_bias_softmax)(np.asarray(prior, np.float64))
        head_bias = tuple(map(float, bias))
    network, fields = (NETWORKS | DETECTORS)[config.model.name]
    own = {argument: config.model[field] for argument, field in fields.items()}
    if network is models.PackedUNet and own["pack"] == own["strips"] == 1:
        network, own = models.UNet, {name: value for name, value in own.items() if name not in ("pack", "strips")}
    shared = {argument: config.model[field] for argument, field in SHARED_ARGUMENTS.items()}
    if is_detector:  # the objects of every class have the same prior
        outputs = len(config.data.box_classes)
        head_bias = head_bias and head_bias * outputs
        per_cell = len(config.model.anchor_scales) * len(config.model.anchor_ratios)
        shared = {"norm": config.model.norm, "remat": config.model.remat, "per_cell": per_cell}
    try:
        model = network(
            num_classes=outputs,
            dtype=jnp.dtype(config.model.dtype),
            axis_name=axis_name,
            head_bias=head_bias,
            head_kernel_stddev=config.model.head_stddev,
            **shared,
            **{argument: value for argument, value in own.items() if value is not None},
        )
        model.check_fields()
    except ValueError as error:
        # The first word of the message is a constructor argument, in most cases.
        argument, _, problem = str(error).partition(" ")
        field = (SHARED_ARGUMENTS | fields).get(argument)
        option = f"config.model.{field}" if field else f"config.model of {config.model.name}: {argument}"
        raise ConfigError(f"{option} {problem}") from error
    return model if config.model.members == 1 else Ensemble(model, config.model.members, num_classes)


@flax.struct.dataclass
class TrainState:
    """State of a run between two steps; the loader's position is saved beside it.

    All arrays of an ensemble but `step` and `skipped` have a leading axis of its members.
    """

    step: Any  # int32 scalar, the number of steps taken
    params: Any  # the model's parameters, float32
    batch_stats: Any  # running statistics of batch norm; empty for other norms
    opt_state: Any  # optax's state
    ema: Any  # moving averages of `params` and `batch_stats`, by these names, for evaluation; or None
    skipped: Any  # int32 scalar, the number of steps skipped, by any member, as not finite; None if none may be skipped
    key: Any  # the run's PRNG key, which never changes: every use folds in (step, global example index)

    @property
    def variables(self) -> dict[str, Any]:
        """Variables for evaluation: the moving averages if there are any, else the current ones."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network, or of all members."""
        return optax.tree.size(self.params)


def network_size(num_parameters: int, members: int) -> str:
    """Returns the number of parameters as text: "0.49 M parameters", "5 members of 0.49 M parameters each"."""
    size = f"{num_parameters / members / 1e6:.3g} M parameters"
    return size if members == 1 else f"{members} members of {size} each"


def init_state(config: ConfigDict, model: nn.Module | Ensemble, *, pretrained: bool = False) -> TrainState:
    """Returns the state before the first step, a pure function of `config.seed`.

    The members of an ensemble start, and draw their augmentation and dropout, from keys of their own; the key of the
    first one is that of a single network.

    With `pretrained` the encoder is loaded from the file `config.model.pretrained`, if one is set. (A caller that
    restores a checkpoint into the state does not need the file.)

    Raises:
      ConfigError: the file does not exist, cannot be read, or is not of this encoder.
    """
    key = jax.random.key(config.seed)
    if not isinstance(model, Ensemble):
        return _init_network(config, model, key, pretrained)
    keys = [key, *(jax.random.fold_in(key, member) for member in range(1, model.members))]
    states = [_init_network(config, model.network, one, pretrained) for one in keys]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *states)
    return stacked.replace(step=states[0].step, skipped=states[0].skipped)


def _init_network(config: ConfigDict, model: nn.Module, key: jax.Array, pretrained: bool) -> TrainState:
    init_key, run_key = jax.random.split(key)
    images = jnp.zeros((1, *input_shape(config)))
    # The mapped axis exists only inside the mapped step, and parameters do not depend on it. The prior is left out so
    # that a sweep over π compiles one initialisation.
    variables = _initial_variables(model.clone(axis_name=None, head_bias=None), init_key, images)
    if pretrained and config.model.pretrained:
        try:
            load = models.load_retinanet if config.model.name in DETECTORS else models.load_encoder
            variables = load(config.model.pretrained, variables)
        except (OSError, ImportError, ValueError) as error:
            raise ConfigError(f"config.model.pretrained: {error}") from error
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    if model.head_bias is not None:
        linear = params["classification" if config.model.name in DETECTORS else "head"]["linear"]
        anchors = linear["bias"].size // model.num_classes  # per cell; 1 unless the network is a detector
        bias = np.tile(model.head_bias, anchors)
        linear["bias"] = jnp.asarray(bias, linear["bias"].dtype)
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


def make_train_step(
    config: ConfigDict, model: nn.Module | Ensemble, num_classes: int, axis_name: str | None
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
    optimizer, learning_rate, is_detector = make_optimizer(config), schedule(config), config.model.name in DETECTORS
    if is_detector:
        # Loaded for detectors only.
        from segjax.training.detection import augmented_boxes, detector_shares, make_detector_objective

        objective = make_detector_objective(config)
    else:
        objective = make_objective(config, num_classes)
    data, num_microbatches, measures_budget = config.data, config.training.accumulate, config.training.gradient_budget
    augmentation = {name: config.augment[name] for name in ("flip", "rotation", "brightness", "contrast")}
    augmentation |= {"scale": tuple(config.augment.scale), "size": tuple(data.size)}
    augmentation |= {"mean": tuple(data.mean), "std": tuple(data.std), "letterbox": data.letterbox}

    def step(state: TrainState, batch: dict[str, jax.Array], hparams: Hyperparams):
        keys = example_keys(state.key, state.step, batch["index"])
        # COCO's boxes come without labels.
        labels = batch["label"] if "label" in batch else jnp.zeros(batch["image"].shape[:3], jnp.uint8)
        arrays, sizes = (batch["image"], labels, keys), batch.get("size")
        images, labels = augment(*arrays, crop_fraction=hparams.crop_fraction, sizes=sizes, **augmentation)
        if is_detector:
            labels = augmented_boxes(batch, labels, keys, config, hparams.crop_fraction)
        outliers = None
        if config.augment.outliers:
            inside = None
            if data.letterbox:  # labels of 0 become void in the padding alone
                zeros = (arrays[0], jnp.zeros_like(arrays[1]), keys)
                inside = augment(*zeros, crop_fraction=hparams.crop_fraction, sizes=sizes, **augmentation)[1] != VOID
            images, labels, outliers = paste_outliers(images, labels, keys, config.augment.outliers, inside)
        dropout_key = jax.random.fold_in(jax.random.fold_in(state.key, _DROPOUT), state.step)

        def loss_of(params, batch_stats, images, labels, outliers, examples, share=None):
            dropout = {}
            if not is_detector:
                dropout = {"rate": hparams.dropout_rate, "deep_rate": hparams.deep_dropout_rate}
                dropout |= {"examples": examples, "rngs": {"dropout": dropout_key}}
            variables = {"params": params, "batch_stats": batch_stats}
            output, updated = model.apply(variables, images, train=True, mutable=["batch_stats"], **dropout)
            loss, parts = objective(output, labels, hparams, axis_name, share, outliers)
            return loss, (output, parts, updated.get("batch_stats", {}))

        loss_and_gradients = jax.value_and_grad(loss_of, has_aux=True)
        examples, before = (images, labels, outliers, batch["index"]), (state.params, state.batch_stats)
        if num_microbatches > 1:
            microbatches = split(examples, num_microbatches)
            if is_detector:
                shares = detector_shares(microbatches[1], config, axis_name)
            else:
                shares = microbatch_shares(microbatches[1], config, num_classes, axis_name, microbatches[2])
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
                lambda z: objective(output._replace(logits=z), labels, hparams, axis_name, outliers=outliers)[0]
            )(output.logits)
            labels, where = targets(labels, num_classes, config.objective.void)
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


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the transformation of gradients to the direction of a step, whose length is the traced learning rate.

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


def learning_rate_at(step: int, config: ConfigDict) -> float:
    """Returns the learning rate of `step`, of which the first is 1; after the last step, that of the last."""
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


def schedule(config: ConfigDict) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Builds `f(peak, step)`: linear warm-up, then `optimizer.schedule`; the phases of a run differ in the peak alone.

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
