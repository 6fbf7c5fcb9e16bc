"""Configs: every field with its default, valid values and meaning, and the checks before a run starts."""

import difflib
import math
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from segjax import models
from segjax.models.resnet import STAGES as RESNETS
from segjax.models.unet import DOWNSAMPLINGS
from segjax.models.upsampling import UPSAMPLINGS
from segjax.training.objective import BINARY_LOSSES, PIXEL_LOSSES, REGION_LOSSES


class ConfigError(ValueError):
    """The config is wrong; the message names the field, what was expected and what was seen."""


# Per network: its class, and the config field (without "model.") of each constructor argument of its own. A field that
# is None leaves the class's default.
NETWORKS: dict[str, tuple[type[models.Network], dict[str, str]]] = {
    "unet": (
        models.PackedUNet,
        {name: name for name in ("width", "depth", "padding", "downsample", "upsample", "pack", "strips")},
    ),
    "patch": (models.PatchClassifier, {"width": "width", "depth": "depth"}),
    "fcn": (models.FCN, {"width": "width", "hidden": "hidden", "stride": "output_stride"}),
    "segnet": (models.SegNet, {"width": "width"}),
    "segnet_basic": (models.SegNetBasic, {"width": "width"}),
    "deeplab_v2": (
        models.DeepLabV2,
        {
            "width": "width",
            "encoder_depth": "encoder_depth",
            "output_stride": "output_stride",
            "rates": "aspp_dilations",
        },
    ),
    "deeplab_v3_plus": (
        models.DeepLabV3Plus,
        {
            "width": "width",
            "encoder_depth": "encoder_depth",
            "output_stride": "output_stride",
            "rates": "aspp_dilations",
            "channels": "hidden",
        },
    ),
    "resnet_unet": (models.ResNetUNet, {"width": "width", "encoder_depth": "encoder_depth"}),
}
# Constructor arguments that every network has.
SHARED_ARGUMENTS = {
    "norm": "norm",
    "remat": "remat",
    "dropout": "dropout",
    "heads": "num_samples",
    "rate": "dropout_rate",
    "mask": "dropout_mask",
    "deep_dropout": "deep_dropout",
    "deep_rate": "deep_dropout_rate",
}


class Field(NamedTuple):
    """One config field.

    Attributes:
      default: the value in `defaults()`.
      meaning: one line for a reader.
      choices: the valid values, if they are a short list.
      range: the valid numbers, as an interval such as "[0, 1)". An optional field may also be None.
      optional: the type of a field whose default is None.
      traced: an argument of every step. Changing its value does not recompile; setting it at all may.
      initial: changes the initial state only, never the program.
    """

    default: Any
    meaning: str
    choices: tuple[Any, ...] = ()
    range: str = ""
    optional: type | None = None
    traced: bool = False
    initial: bool = False


POSITIVE, NONNEGATIVE, FRACTION, PROBABILITY = "(0, inf)", "[0, inf)", "(0, 1]", "[0, 1)"

FIELDS = {
    "seed": Field(0, "seed of the initial parameters, the shuffling, the augmentation and the dropout", initial=True),
    "parallel": Field("jit", "how the step is mapped over all devices; same numbers", ("jit", "pmap", "shard_map")),
    # The choices of data.name are segjax.data.DATASETS, which `validate` loads late: TFDS takes seconds to import.
    "data.name": Field("road_debris", "the data set, a key of segjax.data.DATASETS"),
    "data.data_dir": Field("", "folder of the prepared data sets; '': TFDS's default"),
    "data.manual_dir": Field("", "folder of the raw files; '': $SEGJAX_<NAME>_DIR, or TFDS's manual folder"),
    "data.train_split": Field("train", "split that is trained on"),
    "data.eval_split": Field("val", "split that is scored"),
    "data.scene_size": Field((192, 256), "road_debris: height and width of the drawn scenes"),
    "data.scene_seed": Field(0, "road_debris: seed of the drawn scenes"),
    "data.train_examples": Field(512, "road_debris: number of training images"),
    "data.val_examples": Field(128, "road_debris: number of validation images"),
    "data.class_names": Field((), "folder: class names in the order of their ids"),
    "data.mask_values": Field((), "folder: mask value of each class; (): 0, 1, 2, …"),
    "data.val_fraction": Field(0.1, "folder: fraction held out if there is no val folder"),
    "data.channels": Field(3, "image channels, 3 or 1"),
    "data.size": Field((192, 256), "height and width of the network's input"),
    "data.mean": Field((0.45,), "mean of pixels in [0, 1], one value or one per channel"),
    "data.std": Field((0.25,), "standard deviation of pixels in [0, 1], one value or one per channel"),
    "data.on_error": Field("raise", "what to do at a bad image or mask, before training", ("raise", "skip")),
    "data.workers": Field(1, "loader processes; 0: read in the training process"),
    "augment.crop_fraction": Field(
        1.0, "side of the random crop as a fraction of the image's side", range=FRACTION, traced=True
    ),
    "augment.flip": Field(True, "flip half of the images left to right"),
    "augment.scale": Field((1.0, 1.0), "range of the random zoom"),
    "augment.rotation": Field(0.0, "largest rotation in degrees, in both directions"),
    "augment.brightness": Field(0.0, "largest change of brightness"),
    "augment.contrast": Field(0.0, "largest change of contrast"),
    "model.name": Field("unet", "the network; NETWORKS lists the fields of each", tuple(NETWORKS)),
    "model.width": Field(16, "channels of the first level", range=POSITIVE),
    "model.depth": Field(4, "number of poolings", range=POSITIVE),
    "model.padding": Field("reflect", "padding of the convolutions", ("reflect", "zeros")),
    "model.downsample": Field("max", "pooling, or a convolution with stride 2", DOWNSAMPLINGS),
    "model.upsample": Field("transpose", "upsampling of the decoder", tuple(UPSAMPLINGS)),
    "model.strips": Field(1, "row strips per image, in the batch axis: 16 / images per chip on a TPU, 1 on a CPU"),
    "model.pack": Field(1, "columns packed into the first level's channels: 128 / width on a TPU, 1 on a CPU"),
    "model.encoder_depth": Field(18, "layers of the ResNet encoder", tuple(RESNETS)),
    "model.output_stride": Field(
        None, "stride of the coarsest features, or FCN's finest score; None: the network's own", (), "[1, inf)", int
    ),
    "model.aspp_dilations": Field(None, "dilations of DeepLab's ASPP; None: the network's own", optional=tuple),
    "model.hidden": Field(
        None, "channels of FCN's fc6 and fc7, or of DeepLab's ASPP; None: the network's own", (), "[1, inf)", int
    ),
    "model.pretrained": Field(
        "", "torchvision ResNet weights (.safetensors, .pth) for the encoder; set data.mean and data.std to theirs"
    ),
    "model.norm": Field("batch", "normalisation layers", ("batch", "group", "none")),
    "model.dtype": Field("float32", "dtype of the computation; parameters are float32", ("float32", "bfloat16")),
    "model.remat": Field(False, "recompute activations in the backward pass: less memory, more time"),
    "model.prior": Field(
        (), "prior bias; binary losses: (π,), softmax losses: one frequency per class; (): off", initial=True
    ),
    "model.head_stddev": Field(
        None, "standard deviation of the head's initial kernel; None: by fan-in", (), POSITIVE, float, initial=True
    ),
    "model.dropout": Field(
        "none", "uncertainty of the head: K samples, or the analytic variance (K = ∞)", ("none", "sampled", "analytic")
    ),
    "model.num_samples": Field(3, "number K of dropout samples", range="[1, inf)"),
    "model.dropout_rate": Field(0.2, "dropout rate of the head", range=PROBABILITY, traced=True),
    "model.dropout_mask": Field(
        "element", "one mask value per feature and pixel, or per channel and image (cheaper)", ("element", "channel")
    ),
    "model.deep_dropout": Field(0, "number of deepest blocks, on each side, followed by dropout", range=NONNEGATIVE),
    "model.deep_dropout_rate": Field(0.5, "dropout rate inside the network", range=PROBABILITY, traced=True),
    "objective.loss": Field("softmax_cross_entropy", "the loss per pixel", tuple(PIXEL_LOSSES)),
    "objective.gamma": Field(2.0, "focusing parameter γ of the focal losses", range=NONNEGATIVE, traced=True),
    "objective.beta": Field(1.0, "shift β of FL*", traced=True),
    "objective.alpha": Field(
        None, "sigmoid losses: weight of class 1, 1 - α for class 0; None: 1 and 1", optional=float, traced=True
    ),
    "objective.class_weights": Field((), "softmax losses: one weight per output; (): 1 each", traced=True),
    "objective.normalizer": Field(
        "valid", "divide the sum by all labelled pixels, or by the positive ones", ("valid", "positives")
    ),
    "objective.void": Field(
        "ignore", "ignore void pixels, or learn them as one more class, the last", ("ignore", "class")
    ),
    "objective.boundary_factor": Field(
        None, "weight of pixels on a boundary of the labels; None: off", (), NONNEGATIVE, float, traced=True
    ),
    "objective.boundary_mode": Field(
        "outer", "which pixels are on a boundary, as in scikit-image", ("outer", "inner", "thick")
    ),
    "objective.hard_fraction": Field(
        None,
        "OHEM: fraction of the hardest pixels that contribute to the loss; None: all",
        (),
        FRACTION,
        float,
        traced=True,
    ),
    "objective.hard_threshold": Field(
        None, "OHEM: smallest loss of a pixel that contributes; None: all", (), NONNEGATIVE, float, traced=True
    ),
    "objective.negatives_per_positive": Field(
        None, "OHEM: hardest negatives per positive pixel; None: all", (), NONNEGATIVE, float, traced=True
    ),
    "objective.region": Field("none", "region loss to add", tuple(REGION_LOSSES)),
    "objective.region_weight": Field(1.0, "factor of the region loss", range=NONNEGATIVE, traced=True),
    "objective.uncertainty_weight": Field(
        None, "factor C of the uncertainty penalty; None: off", (), NONNEGATIVE, float, traced=True
    ),
    "objective.background": Field(
        None,
        "class without penalty that is not positive; None: class 0 of a binary loss, void if it is a class, else none",
        optional=int,
    ),
    "optimizer.name": Field("adamw", "optimizer", ("adamw", "adam", "sgd")),
    "optimizer.learning_rate": Field(2e-3, "peak learning rate", range=POSITIVE, traced=True),
    "optimizer.warmup_fraction": Field(0.1, "fraction of all steps with linear warm-up", range="[0, 1]"),
    "optimizer.schedule": Field(
        "cosine", "learning rate after the warm-up; all but 'constant' end at 0", ("cosine", "polynomial", "constant")
    ),
    "optimizer.weight_decay": Field(1e-4, "weight decay of kernels; decoupled in AdamW"),
    "optimizer.momentum": Field(0.9, "β₁ of Adam, momentum of SGD"),
    "optimizer.clip_norm": Field(1.0, "largest global gradient norm; 0: no clipping"),
    "training.steps": Field(1000, "number of steps", range=POSITIVE),
    "training.global_batch": Field(8, "images per step, over all devices and hosts", range=POSITIVE),
    "training.accumulate": Field(
        1, "microbatches per device and step: the same gradients with less memory", range=POSITIVE
    ),
    "training.log_every": Field(10, "steps between two lines of the log", range=POSITIVE),
    "training.evaluate_every": Field(250, "steps between two evaluations", range=POSITIVE),
    "training.checkpoint_every": Field(250, "steps between two checkpoints", range=POSITIVE),
    "training.phases": Field(
        (), "(crop fraction, steps, peak learning rate) of each phase; replaces these three fields"
    ),
    "training.ema_decay": Field(
        None, "decay of the parameters' moving average, which is then scored; None: off", (), PROBABILITY, float, True
    ),
    "training.skip_nonfinite": Field(
        0, "skip non-finite steps and stop at this many in a row; 0: stop at the first", range=NONNEGATIVE
    ),
    "training.donate": Field(True, "reuse the memory of the state before the step"),
    "training.prefetch": Field(1, "batches placed on the devices ahead of the current step", range=NONNEGATIVE),
    "training.gradient_budget": Field(False, "log the gradient by class and by easy and hard pixels"),
}
# Fields that change values and never the program: sweep cells that differ only in these share one compilation.
INITIAL = tuple(key for key, field in FIELDS.items() if field.initial)
TRACED = tuple(key for key, field in FIELDS.items() if field.traced)

# Fields that were renamed: the old name and the new one.
RENAMED = {
    "model.rates": "model.aspp_dilations",
    "model.rate": "model.dropout_rate",
    "model.mask": "model.dropout_mask",
    "model.heads": "model.num_samples",
    "model.deep_rate": "model.deep_dropout_rate",
}


def defaults() -> ConfigDict:
    """Returns a complete, locked config, from which config files start: assigning a misspelt field is an error.

    >>> config = defaults()
    >>> config.objective.gama = 2.0
    Traceback (most recent call last):
      ...
    AttributeError: 'Key "gama" does not exist ...Did you mean "gamma" instead of "gama"?'
    """
    config = ConfigDict()
    for key, field in FIELDS.items():
        group, _, name = key.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        (config[group] if group else config)[name] = placeholder(field.optional) if field.optional else field.default
    return config.lock()


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """Returns the config's fields by their dotted names."""
    flat = {}
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changed(config: ConfigDict) -> list[tuple[str, object, object]]:
    """Returns (field, value, default) of the fields that differ from `defaults`.

    >>> config = defaults()
    >>> config.objective.gamma = 0.5
    >>> changed(config)
    [('objective.gamma', 0.5, 2.0)]
    """
    return [(k, value, FIELDS[k].default) for k, value in leaves(config).items() if value != FIELDS[k].default]


def from_leaves(values: dict[str, object]) -> ConfigDict:
    """Returns the complete config of `leaves`' dictionary. JSON's lists become tuples again.

    Raises:
      ConfigError: a field has its old name; the message has the new one.
    """
    config = defaults()
    for key, value in values.items():
        check_not_renamed(key)
        node = config
        *path, last = key.split(".")
        for name in path:
            node = node[name]
        node[last] = _tuples(value)
    return config


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def program(config: ConfigDict) -> tuple[tuple[str, object], ...]:
    """Returns the fields that are neither `INITIAL` nor `TRACED`: runs with equal ones share a compiled step.

    >>> one, other = defaults(), defaults()
    >>> one.objective.gamma, one.objective.alpha, other.objective.alpha = 0.5, 0.25, 0.75
    >>> program(one) == program(other), program(one) == program(defaults())
    (True, False)
    """
    fields = {key: value for key, value in sorted(leaves(config).items()) if key not in INITIAL}
    return tuple((key, value is not None and value != () if key in TRACED else value) for key, value in fields.items())


def check_not_renamed(key: str) -> None:
    """Raises `ConfigError` naming the new field if `key` is the old name of one."""
    if key in RENAMED:
        raise ConfigError(f"config.{key} was renamed; use config.{RENAMED[key]}")


def check_known(key: str, value: object) -> None:
    """Raises `ConfigError`, with the nearest name, if `key` is neither a field of a config nor a group of fields."""
    if key in FIELDS or any(name.startswith(f"{key}.") for name in FIELDS):
        return
    check_not_renamed(key)
    close = difflib.get_close_matches(key, FIELDS, n=1)
    hint = f"; did you mean config.{close[0]}?" if close else ""
    raise ConfigError(f"unknown config key config.{key} = {value!r}{hint}")


def validate(config: ConfigDict) -> None:
    """Raises `ConfigError` naming the first field that is unknown, missing or invalid."""
    from segjax.data import DATASETS  # here, because the data layer loads TFDS, which takes seconds

    given = leaves(config)
    for key, value in given.items():
        check_known(key, value)
    for key, field in FIELDS.items():
        if key not in given:
            raise ConfigError(f"config.{key} is missing; start from segjax.training.config() to have every field")
        value, choices = given[key], tuple(DATASETS) if key == "data.name" else field.choices
        if choices and value not in choices:
            raise ConfigError(f"config.{key} must be one of {', '.join(map(str, choices))}; got {value!r}")
        if field.range and not (value is None and field.optional) and not _inside(value, field.range):
            none = " or None" if field.optional else ""
            raise ConfigError(f"config.{key} must be in {field.range}{none}; got {value!r}")
    _validate_data(config.data)
    _validate_network(config)
    _validate_accumulation(config)
    _validate_phases(config)
    _validate_uncertainty(config)
    _validate_objective(config.objective)


def _inside(value: int | float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    return (value > low or (value == low and interval[0] == "[")) and (
        value < high or (value == high and interval[-1] == "]")
    )


def _validate_data(data: ConfigDict) -> None:
    for key in ("mean", "std"):
        if len(data[key]) not in (1, data.channels):
            raise ConfigError(
                f"config.data.{key} needs 1 or config.data.channels = {data.channels} values; got {data[key]!r}"
            )
    if not all(std > 0 for std in data.std) or not all(map(math.isfinite, data.mean)):
        raise ConfigError(
            f"config.data.std must be positive and config.data.mean finite; got {data.std!r} and {data.mean!r}"
        )


def _validate_network(config: ConfigDict) -> None:
    """Refuses fields of other networks, which would have no effect."""
    own = set(NETWORKS[config.model.name][1].values())
    for name in sorted({name for _, fields in NETWORKS.values() for name in fields.values()} - own):
        default = FIELDS[f"model.{name}"].default
        if config.model[name] != default:
            owners = ", ".join(network for network, (_, fields) in NETWORKS.items() if name in fields.values())
            raise ConfigError(
                f"config.model.{name} belongs to {owners}; {config.model.name} does not have it: leave it at "
                f"{default!r}; got {config.model[name]!r}"
            )
    if config.model.pretrained and "encoder_depth" not in own:
        raise ConfigError(
            f"config.model.pretrained is for networks with an encoder; {config.model.name} does not have one; "
            f"got {config.model.pretrained!r}"
        )


def _mining(objective: ConfigDict) -> list[str]:
    names = ("hard_fraction", "hard_threshold", "negatives_per_positive")
    return [f"config.objective.{name}" for name in names if objective[name] is not None]


def _validate_accumulation(config: ConfigDict) -> None:
    if config.training.accumulate == 1:
        return
    given = _mining(config.objective)
    given += ["config.objective.region"] if config.objective.region != "none" else []
    given += ["config.training.gradient_budget"] if config.training.gradient_budget else []
    if given:
        raise ConfigError(
            f"{given[0]} needs the whole batch at once: turn it off, or set config.training.accumulate to 1; "
            f"got {config.training.accumulate!r}"
        )


def _validate_phases(config: ConfigDict) -> None:
    phases = config.training.phases
    for phase in phases:
        if not (len(phase) == 3 and 0 < phase[0] <= 1 and int(phase[1]) == phase[1] > 0 and phase[2] > 0):
            raise ConfigError(
                "each of config.training.phases must be (crop fraction in (0, 1], steps, learning rate), the last two "
                f"positive; got {phase!r}"
            )
    total = sum(phase[1] for phase in phases)
    if phases and total != config.training.steps:
        raise ConfigError(
            f"the steps of config.training.phases add up to {total}; config.training.steps is {config.training.steps}"
        )
    # A field that the phases replace must not look as if it had an effect.
    peak = max((phase[2] for phase in phases), default=config.optimizer.learning_rate)
    if config.optimizer.learning_rate != peak:
        raise ConfigError(
            f"config.optimizer.learning_rate = {config.optimizer.learning_rate!r} has no effect with "
            f"config.training.phases, whose highest rate is {peak!r}: set them equal, or change the phases"
        )
    if phases and config.augment.crop_fraction != 1:
        raise ConfigError(
            f"config.augment.crop_fraction = {config.augment.crop_fraction!r} has no effect with "
            "config.training.phases: leave it at 1, or change the phases"
        )


def _validate_uncertainty(config: ConfigDict) -> None:
    model = config.model
    if config.objective.uncertainty_weight is None:
        return
    if model.dropout == "none":
        raise ConfigError(
            "config.objective.uncertainty_weight needs a variance: set config.model.dropout to 'sampled' or 'analytic'"
        )
    if model.dropout == "sampled" and model.num_samples < 2:
        raise ConfigError(f"config.model.num_samples must be at least 2 for a variance; got {model.num_samples}")


def _validate_objective(objective: ConfigDict) -> None:
    if objective.void == "class" and objective.background is not None:
        raise ConfigError(
            "config.objective.background must be None if void is a class, which then is the background; got "
            f"{objective.background!r}"
        )
    (_validate_binary if objective.loss in BINARY_LOSSES else _validate_softmax)(objective)
    given = _mining(objective)
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} cannot be combined: set one of them, the others to None")


def _validate_binary(objective: ConfigDict) -> None:
    if objective.void == "class":
        raise ConfigError(f"config.objective.void = 'class' belongs to softmax losses; got {objective.loss}")
    if objective.background not in (None, 0):
        raise ConfigError(
            f"config.objective.background of {objective.loss} must be class 0 or None; got {objective.background!r}"
        )
    if objective.class_weights:
        raise ConfigError(
            f"config.objective.class_weights belongs to softmax losses; {objective.loss} takes config.objective.alpha"
        )
    if objective.alpha is not None and objective.loss == "hinge":
        raise ConfigError(
            f"config.objective.alpha belongs to sigmoid losses, hinge does not take it; got {objective.alpha!r}"
        )
    if objective.alpha is not None and not 0 <= objective.alpha <= 1:
        raise ConfigError(f"config.objective.alpha must lie in [0, 1]; got {objective.alpha!r}")
    if objective.loss == "sigmoid_focal_star" and not objective.gamma > 0:
        raise ConfigError(
            f"config.objective.gamma must be above 0 for sigmoid_focal_star, which divides by it; "
            f"got {objective.gamma!r}"
        )


def _validate_softmax(objective: ConfigDict) -> None:
    if objective.alpha is not None:
        raise ConfigError(
            f"config.objective.alpha belongs to sigmoid losses; {objective.loss} takes config.objective.class_weights"
        )
    if objective.background is None and objective.void != "class":
        for field, value in (("normalizer", "positives"), ("negatives_per_positive", objective.negatives_per_positive)):
            if value is not None and objective[field] == value:
                raise ConfigError(
                    f"config.objective.{field} = {value!r} counts the pixels that are not background: set "
                    "config.objective.background to that class"
                )
