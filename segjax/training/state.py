"""The network of a config, its input, its optimizer, and the state of a run before its first step."""

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from segjax import data, losses, models
from segjax.data.augment import example_keys
from segjax.inference.forward import Ensemble, Preprocessing
from segjax.models.pretrained import WEIGHT_FILES
from segjax.training.config import ConfigError, input_shape
from segjax.training.fields import DETECTORS, NETWORKS, SHARED_ARGUMENTS
from segjax.training.objective import BINARY_LOSSES, hparams_at, hparams_from_config, num_outputs, phases


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


def make_model(
    config: ConfigDict, num_classes: int, axis_name: str | None = None
) -> models.Network | models.RetinaNet | Ensemble:
    """Returns the network of `config`, or its ensemble, for a data set of `num_classes` classes.

    Raises:
      ConfigError: the data set has one class, or with a binary loss more than two; or a prior of the wrong length.
    """
    loss, prior, outputs = config.objective.loss, tuple(config.model.prior), num_outputs(config, num_classes)
    binary, name, is_detector = outputs == 1, config.data.name, config.model.name in DETECTORS
    if num_classes < 2:
        raise ConfigError(
            f"{name} has {num_classes} class; expected at least 2: name the background too, as in "
            "config.data.class_names = ('background', 'object')"
        )
    if binary and num_classes != 2 and not is_detector:
        raise ConfigError(
            f"config.objective.loss = {loss!r} separates one rare class from the rest and needs a data set of 2 "
            f"classes; {name} has {num_classes}"
        )
    if prior and len(prior) != outputs:
        raise ConfigError(f"config.model.prior needs {outputs} value(s) for {loss}; got {prior}")
    background, void = config.objective.background, ", void last" if config.objective.void == "class" else ""
    per_output = f"output of {name}{void}"
    lengths = {"class_weights": (outputs, per_output), "class_frequencies": (outputs, per_output)}
    lengths["region_class_weights"] = (num_classes, f"class of {name}")
    for key, (length, each) in lengths.items():
        given = tuple(config.objective[key])
        if given and len(given) != length:
            raise ConfigError(f"config.objective.{key} needs {length} values, one per {each}; got {given}")
    if background is not None and not 0 <= background < num_classes:
        raise ConfigError(
            f"config.objective.background must be a class of {name}, 0 to {num_classes - 1}; got {background}"
        )
    rare_train_ids(config)  # refuses unknown names before the data set is opened
    head_bias = None
    if prior:  # in float64, where 1 - π of a rare class with π = 1e-8 is not rounded to 1
        is_sigmoid = loss in BINARY_LOSSES
        bias = (losses.prior_bias if is_sigmoid else losses.prior_bias_softmax)(np.asarray(prior, np.float64))
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
    members = config.model.members
    return model if members == 1 else Ensemble(model, members, num_classes, config.data.multilabel)


def rare_train_ids(config: ConfigDict) -> tuple[int, ...]:
    """Returns the train ids of `augment.rare_classes`; () without rare crops and copy-paste.

    For classes that overlap, they are those of each combination with a rare class.

    Raises:
      ConfigError: a name is not a class, or the data set has more than two classes and none is named.
    """
    names = tuple(config.augment.rare_classes)
    if config.augment.rare_crops is config.augment.copy_paste is None:
        return ()
    labels = data.label_set(config.data)
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
    return tuple(np.flatnonzero(labels.combinations[:, classes].any(axis=1)).tolist())


@flax.struct.dataclass
class TrainState:
    """State of a run between two steps; the loader's position is saved with it.

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

    Each member of an ensemble has its own key for initialisation, augmentation and dropout. Member 0 uses the key of a
    single network.

    With `pretrained` the weights of the file, package or run `config.model.pretrained` are loaded, if one is set. (A
    caller that restores a checkpoint into the state does not need them.)

    Raises:
      ConfigError: the file, package or run does not exist, cannot be read, or is not of this network.
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
    if model.head_bias is not None:
        linear = variables["params"]["classification" if config.model.name in DETECTORS else "head"]["linear"]
        anchors = linear["bias"].size // model.num_classes  # per cell; 1 unless the network is a detector
        bias = np.tile(model.head_bias, anchors)
        linear["bias"] = jnp.asarray(bias, linear["bias"].dtype)
    if pretrained and config.model.pretrained:
        try:
            variables = _with_pretrained(config, variables)
        except (OSError, ImportError, ValueError) as error:
            raise ConfigError(f"config.model.pretrained: {error}") from error
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


def _with_pretrained(config: ConfigDict, variables: dict[str, Any]) -> dict[str, Any]:
    """Returns initial variables with those of the file, package or run `config.model.pretrained`."""
    source, is_detector = config.model.pretrained, config.model.name in DETECTORS
    if source == "package":
        return models.load_encoder(models.package_file(config.model.encoder), variables)
    if source.endswith(WEIGHT_FILES):
        return (models.load_retinanet if is_detector else models.load_encoder)(source, variables)
    from segjax.training.checkpoint import trained_variables  # loaded to start from a run only

    try:
        return models.with_trained(variables, trained_variables(source))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


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


def preprocessing_of(config: ConfigDict, num_classes: int) -> Preprocessing:
    """Returns the input and classes of the network of `config`."""
    fields, (*size, channels) = config.data, input_shape(config)
    value_range = None if isinstance(fields.range, str) else tuple(fields.range)
    dtype = None if value_range is None else fields.dtype
    pixels = {"mean": tuple(fields.mean), "std": tuple(fields.std), "value_range": value_range, "dtype": dtype}
    options = {"num_classes": num_classes, "letterbox": fields.letterbox, "multilabel": fields.multilabel}
    return Preprocessing(tuple(size), channels, **options, **pixels)


def images_of(batch: dict[str, jax.Array], corruption: tuple[str, int] | None = None) -> Array:
    """Returns the images of a batch of `eval_batches`, with a `corruption` (kind, severity) those of `data.corrupt`."""
    if corruption is None:
        return batch["image"]
    kind, severity = corruption
    if (channels := batch["image"].shape[-1]) not in (1, 3):
        raise ConfigError(
            f"--corruption and --severity need images of 1 or 3 channels; these have {channels}: leave them out"
        )
    keys = example_keys(jax.random.key(0), 0, batch["index"])  # the same in every evaluation
    return data.corrupt(batch["image"], keys, kind=kind, severity=severity, sizes=batch["size"])
