"""What one device does in a step: pure functions of (state, batch, hyperparameters), mapped by `parallel`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from segjax import losses, metrics, models
from segjax.collectives import pmean
from segjax.data.augment import augment, example_keys, prepare, resize_logits_to
from segjax.data.labels import VOID
from segjax.training.defaults import ConfigError
from segjax.training.objective import Hyper, is_sigmoid, make_objective

MODELS: dict[str, type[nn.Module]] = {"unet": models.UNet}


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step (the loader's position is saved beside it).

    Attributes:
      step: int32 scalar, how many steps were taken.
      params: the model's parameters, float32.
      batch_stats: running statistics of batch norm; empty for other norms.
      opt_state: optax's state.
      key: the run's PRNG key; never changes, every use folds in (step, global example index).
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    key: Any


def make_model(config: ConfigDict, num_classes: int, axis_name: str | None = None) -> nn.Module:
    """The network of `config` for a set of `num_classes` classes.

    Raises:
      ConfigError: a sigmoid loss on a set that has not exactly two classes, or a prior of the wrong length.
    """
    loss, prior = config.objective.loss, tuple(config.model.prior)
    if is_sigmoid(loss) and num_classes != 2:
        raise ConfigError(
            f"config.objective.loss = {loss!r} tells one rare class from the rest and needs a data set of 2 classes; "
            f"{config.data.name} has {num_classes}"
        )
    outputs = 1 if is_sigmoid(loss) else num_classes
    if prior and len(prior) != outputs:
        raise ConfigError(f"config.model.prior needs {outputs} value(s) for {loss}; got {prior}")
    head_bias = None
    if prior:
        bias_of = losses.prior_bias if is_sigmoid(loss) else losses.prior_bias_softmax
        # NumPy's float64: a rare class' π of 1e-8 and its 1 - π are not yet rounded.
        head_bias = tuple(float(b) for b in bias_of(np.asarray(prior, np.float64)))
    return MODELS[config.model.name](
        num_classes=outputs,
        width=config.model.width,
        depth=config.model.depth,
        norm=config.model.norm,
        padding=config.model.padding,
        dtype=jnp.dtype(config.model.dtype),
        axis_name=axis_name,
        head_bias=head_bias,
        head_kernel_stddev=config.model.head_stddev,
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
    """`f(peak, step)`: linear warm-up over `warmup_fraction` of the steps, then a cosine to 0."""
    steps = config.training.steps
    warmup = max(1, round(config.optimizer.warmup_fraction * steps))
    shape = optax.warmup_cosine_decay_schedule(1 / warmup, 1.0, warmup, max(steps, warmup + 1))
    return lambda peak, step: peak * shape(step)


def init_state(config: ConfigDict, model: nn.Module) -> TrainState:
    """The state before the first step: a pure function of `config.seed`."""
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    images = jnp.zeros((1, *config.data.size, config.data.channels))
    # Parameters do not depend on the mapped axis, and the axis exists only inside the mapped step.
    variables = jax.jit(model.clone(axis_name=None).init, static_argnames="train")(init_key, images, train=False)
    params = variables["params"]
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=make_optimizer(config).init(params),
        key=run_key,
    )


def make_train_step(config: ConfigDict, model: nn.Module, axis_name: str | None) -> Callable:
    """Builds `step(state, batch, hyper) -> (state, metrics)`.

    `batch` holds this device's uint8 "image" `[b, H, W, C]` and "label" `[b, H, W]` as the loader hands them over, and
    "index" `[b]`, the global example index that keys the augmentation. `metrics` are scalars over the global batch:
    loss, grad_norm, learning_rate.
    """
    objective = make_objective(config.objective.loss, config.objective.normalizer)
    optimizer = make_optimizer(config)
    learning_rate = learning_rate_at(config)
    options = config.augment
    picture = {"size": tuple(config.data.size), "mean": tuple(config.data.mean), "std": tuple(config.data.std)}

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

        def loss_of(params):
            output, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats}, images, train=True, mutable=["batch_stats"]
            )
            return objective(output.logits, labels, labels != VOID, hyper, axis_name), updated

        (loss, updated), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        gradients = pmean(gradients, axis_name)
        directions, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        rate = learning_rate(hyper.learning_rate, state.step)
        new_state = TrainState(
            step=state.step + 1,
            params=jax.tree.map(lambda p, d: p - rate * d, state.params, directions),
            batch_stats=updated.get("batch_stats", {}),
            opt_state=opt_state,
            key=state.key,
        )
        return new_state, {"loss": loss, "grad_norm": optax.tree.norm(gradients), "learning_rate": rate}

    return step


def make_predict(config: ConfigDict, model: nn.Module) -> Callable:
    """Builds `predict(state, images, sizes, canvas) -> logits [b, *canvas, C]` at each image's own resolution.

    `images` are uint8 `[b, H, W, C]`, `sizes` `[b, 2]` the native height and width of each, `canvas` the static size
    that holds them all: the network works at `config.data.size`, its logits are resized to the native grid.
    """
    size, mean, std = tuple(config.data.size), tuple(config.data.mean), tuple(config.data.std)

    def predict(state: TrainState, images: jax.Array, sizes: jax.Array, canvas: tuple[int, int]) -> jax.Array:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        output = model.apply(variables, prepare(images, size=size, mean=mean, std=std), train=False)
        return resize_logits_to(output.logits, canvas, sizes)

    return predict


def classify(logits: jax.Array) -> jax.Array:
    """The predicted class a pixel: the larger logit, or for one logit whether it is positive (p > 0.5)."""
    return (logits[..., 0] > 0).astype(jnp.int32) if logits.shape[-1] == 1 else jnp.argmax(logits, axis=-1)


def make_predictor(config: ConfigDict, model: nn.Module) -> Callable:
    """Builds `predictor(state)(image) -> mask`: a uint8 image `[H, W, C]` to its class a pixel, uint8 `[H, W]`."""
    compiled = jax.jit(make_predict(config, model), static_argnames="canvas")

    def predictor(state: TrainState) -> Callable:
        def predict(image: np.ndarray) -> np.ndarray:
            size = image.shape[:2]
            return np.asarray(classify(compiled(state, image[None], np.array([size], np.int32), size))[0], np.uint8)

        return predict

    return predictor


def make_eval_step(config: ConfigDict, model: nn.Module, num_classes: int, axis_name: str | None) -> Callable:
    """Builds `step(state, batch) -> counts`, which add over batches: a confusion matrix at native resolution, and for
    two classes the score histogram of class 1.
    """
    predict = make_predict(config, model)

    def step(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, Any]:
        labels = batch["label"].astype(jnp.int32)
        logits = predict(state, batch["image"], batch["size"], labels.shape[1:])
        where = (labels != VOID) & batch["where"][:, None, None]
        counts = {
            "confusion": metrics.confusion_matrix(
                labels, classify(logits), num_classes, where=where, axis_name=axis_name
            )
        }
        if num_classes == 2:
            margin = logits[..., 0] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]
            counts["scores"] = metrics.score_histogram(margin, labels == 1, where=where, axis_name=axis_name)
        return counts

    return step
