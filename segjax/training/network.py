"""The network of a config, its input and its outputs, and the state that a training changes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from segjax import data, losses, models
from segjax.data.augment import example_keys
from segjax.inference.forward import Ensemble, Preprocessing
from segjax.training.config import ConfigError, input_shape
from segjax.training.fields import DETECTORS, NETWORKS, SHARED_ARGUMENTS
from segjax.training.objective import BINARY_LOSSES


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
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


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


def num_outputs(config: ConfigDict, num_classes: int) -> int:
    """Returns the number of logits per pixel: one per class, and one for a void class; or 1 for a binary loss."""
    if config.objective.loss in BINARY_LOSSES and not config.data.multilabel:
        return 1
    return num_classes + (config.objective.void == "class")


def network_size(num_parameters: int, members: int) -> str:
    """Returns the number of parameters as text: "0.49 M parameters", "5 members of 0.49 M parameters each"."""
    size = f"{num_parameters / members / 1e6:.3g} M parameters"
    return size if members == 1 else f"{members} members of {size} each"


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
