"""Every field a config can have, its default, and the check that a config makes sense before anything is read."""

import difflib
import math

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from segjax.training.objective import PIXEL_LOSSES, REGION_LOSSES, is_sigmoid

_CHOICES = {
    "model.name": ("unet",),
    "model.norm": ("batch", "group", "none"),
    "model.padding": ("reflect", "zeros"),
    "model.dtype": ("float32", "bfloat16"),
    "model.upsample": ("transpose", "pixel_shuffle"),
    "model.dropout": ("none", "sampled", "analytic"),
    "model.mask": ("element", "channel"),
    "objective.loss": tuple(PIXEL_LOSSES),
    "objective.normalizer": ("valid", "positives"),
    "objective.void": ("ignore", "class"),
    "objective.boundary_mode": ("outer", "inner", "thick"),
    "objective.region": tuple(REGION_LOSSES),
    "optimizer.name": ("adamw", "adam", "sgd"),
    "optimizer.schedule": ("cosine", "polynomial", "constant"),
    "parallel": ("jit", "pmap", "shard_map"),
}
_POSITIVE = (
    "model.width",
    "model.depth",
    "training.steps",
    "training.global_batch",
    "training.log_every",
    "training.evaluate_every",
    "training.checkpoint_every",
    "optimizer.learning_rate",
)
# From and to; None is allowed where the default is None.
_RANGES = {
    "model.heads": (1, math.inf),
    "model.deep_dropout": (0, math.inf),
    "objective.gamma": (0, math.inf),
    "objective.boundary_factor": (0, math.inf),
    "objective.hard_fraction": (0, 1),
    "objective.region_weight": (0, math.inf),
    "objective.uncertainty_weight": (0, math.inf),
    "optimizer.warmup_fraction": (0, 1),
}
_BELOW_ONE = ("model.rate", "model.deep_rate", "training.ema_decay")


class ConfigError(ValueError):
    """The config is wrong; the message names the field, what was expected and what was seen."""


def defaults() -> ConfigDict:
    """A complete, locked config: config files start from it, so a misspelt key is an error where it is written.

    >>> config = defaults()
    >>> config.objective.gama = 2.0
    Traceback (most recent call last):
      ...
    AttributeError: 'Key "gama" does not exist ...Did you mean "gamma" instead of "gama"?'
    """
    config = ConfigDict()
    config.seed = 0
    config.parallel = "jit"  # jit | pmap | shard_map over all devices: the same numbers

    config.data = data = ConfigDict()
    data.name = "road_debris"  # a key of segjax.data.DATASETS
    data.data_dir = ""  # where prepared sets live; "": TFDS's own default
    data.manual_dir = ""  # the raw files; "": $SEGJAX_<NAME>_DIR, or TFDS's manual folder
    data.train_split = "train"
    data.eval_split = "val"
    data.scene_size = (192, 256)  # road_debris: height and width of the drawn scenes, ...
    data.scene_seed = 0  # ... the set's own seed, ...
    data.train_examples = 512  # ... and its sizes
    data.val_examples = 128
    data.class_names = ()  # folder: the classes in the order of their ids, ...
    data.mask_values = ()  # ... the mask value of each class, (): 0, 1, 2, …, ...
    data.val_fraction = 0.1  # ... and the share held out where there is no val folder
    data.channels = 3  # of the images: 3 or 1
    data.size = (192, 256)  # the network's input, height and width
    data.mean = (0.45,)  # of pixels in 0..1, one value or one a channel
    data.std = (0.25,)
    data.workers = 1  # loader processes; 0: read in this one

    config.augment = augment = ConfigDict()
    augment.crop_fraction = 1.0  # side of the random crop as a share of the image's; traced
    augment.flip = True
    augment.scale = (1.0, 1.0)  # random zoom, from and to
    augment.rotation = 0.0  # degrees, either way
    augment.brightness = 0.0
    augment.contrast = 0.0

    config.model = model = ConfigDict()
    model.name = "unet"
    model.width = 16
    model.depth = 4
    model.norm = "batch"
    model.padding = "reflect"
    model.upsample = "transpose"  # or "pixel_shuffle", with ICNR initialisation
    model.dtype = "float32"  # of the computation; parameters are float32
    model.prior = ()  # sigmoid: (π,); softmax: a frequency a class; (): no prior bias
    model.head_stddev = placeholder(float)  # of the head's initial kernel; None: the usual fan-in scale
    model.dropout = "none"  # heads whose variance is the uncertainty: "sampled" (K of them) or "analytic" (K = ∞)
    model.heads = 3  # K
    model.rate = 0.2  # p of the heads' dropout; traced
    model.mask = "element"  # a number a feature and pixel, or a "channel" and image: the same variance, far cheaper
    model.deep_dropout = 0  # dropout inside the network too: after so many of the deepest blocks, each way
    model.deep_rate = 0.5  # and its p; traced

    config.objective = objective = ConfigDict()
    objective.loss = "softmax_cross_entropy"
    objective.gamma = 2.0  # of the focal losses
    objective.alpha = placeholder(float)  # sigmoid losses: weight of class 1, 1 - α for the rest; None: 1 and 1
    objective.class_weights = ()  # softmax losses: a weight an output; (): 1 each
    objective.normalizer = "valid"
    objective.void = "ignore"  # or "class": void pixels are learned as one more class, the last output
    objective.boundary_factor = placeholder(float)  # weight k of the pixels on a boundary of the labels; None: off
    objective.boundary_mode = "outer"  # which pixels these are; scikit-image's words
    objective.hard_fraction = placeholder(float)  # OHEM: the share of hardest pixels that count; None: all
    objective.region = "none"  # a region loss to add: dice, generalized_dice, jaccard, lovasz
    objective.region_weight = 1.0
    objective.uncertainty_weight = placeholder(float)  # C of the heads' variance as a penalty; None: off
    objective.background = placeholder(int)  # class of which the penalty is free; None: none, or void where a class

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"
    optimizer.learning_rate = 2e-3  # the peak
    optimizer.warmup_fraction = 0.1  # of all steps, linear; ...
    optimizer.schedule = "cosine"  # ... then to 0 by a cosine or "polynomial"ly, or "constant"
    optimizer.weight_decay = 1e-4  # decoupled (AdamW), on kernels only
    optimizer.momentum = 0.9  # β₁ of Adam, the momentum of SGD
    optimizer.clip_norm = 1.0  # of the global gradient; 0: no clipping

    config.training = training = ConfigDict()
    training.steps = 1000
    training.global_batch = 8
    training.log_every = 10
    training.evaluate_every = 250
    training.checkpoint_every = 250
    training.phases = ()  # (crop fraction, steps, learning rate) each, in place of the three fields; steps add up
    training.ema_decay = placeholder(float)  # evaluate a running mean of the parameters; None: the last ones
    training.gradient_budget = False  # log whose pixels the gradient comes from, by class, easy and hard
    return config.lock()


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """The config's fields by their dotted names."""
    flat = {}
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def from_leaves(values: dict[str, object]) -> ConfigDict:
    """A complete config from `leaves`' dictionary, also after its way through JSON (lists become tuples again)."""
    config = defaults()
    for key, value in values.items():
        node = config
        *path, last = key.split(".")
        for name in path:
            node = node[name]
        node[last] = _tuples(value)
    return config


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def validate(config: ConfigDict) -> None:
    """Raises `ConfigError` naming the first field that is unknown, missing or makes no sense."""
    from segjax.data import DATASETS  # here, since the data layer loads TFDS, which takes seconds

    given, known = leaves(config), leaves(defaults())
    for key in given.keys() - known.keys():
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean config.{close[0]}?" if close else ""
        raise ConfigError(f"unknown config key config.{key} = {given[key]!r}{hint}")
    for key in known.keys() - given.keys():
        raise ConfigError(f"config.{key} is missing; start from segjax.training.defaults() to have every field")
    for key, choices in {**_CHOICES, "data.name": tuple(DATASETS)}.items():
        if given[key] not in choices:
            raise ConfigError(f"config.{key} must be one of {', '.join(choices)}; got {given[key]!r}")
    for key in _POSITIVE:
        if not given[key] > 0:
            raise ConfigError(f"config.{key} must be positive; got {given[key]!r}")
    for key, (low, high) in _RANGES.items():
        if given[key] is not None and not low <= given[key] <= high:
            raise ConfigError(f"config.{key} must be in [{low}, {high}]; got {given[key]!r}")
    for key in _BELOW_ONE:
        if given[key] is not None and not 0 <= given[key] < 1:
            raise ConfigError(f"config.{key} must be in [0, 1); got {given[key]!r}")
    for key in ("mean", "std"):
        if len(config.data[key]) not in (1, config.data.channels):
            raise ConfigError(
                f"config.data.{key} needs 1 or config.data.channels = {config.data.channels} values; "
                f"got {config.data[key]!r}"
            )
    _validate_phases(config)
    _validate_uncertainty(config)
    _validate_objective(config)


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
    # What the phases replace must not look as if it did something.
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
    model, objective = config.model, config.objective
    if objective.uncertainty_weight is None:
        return
    if model.dropout == "none":
        raise ConfigError(
            "config.objective.uncertainty_weight needs heads that can disagree: set config.model.dropout to 'sampled' "
            "or 'analytic'"
        )
    if model.dropout == "sampled" and model.heads < 2:
        raise ConfigError(f"config.model.heads must be at least 2 for a variance; got {model.heads}")


def _validate_objective(config: ConfigDict) -> None:
    objective = config.objective
    if objective.void == "class" and objective.background is not None:
        raise ConfigError(
            "config.objective.background must be None where void is a class, which then is the background; got "
            f"{objective.background!r}"
        )
    if is_sigmoid(objective.loss):
        if objective.void == "class":
            raise ConfigError(f"config.objective.void = 'class' belongs to softmax losses; got {objective.loss}")
        if objective.class_weights:
            raise ConfigError(
                f"config.objective.class_weights belongs to softmax losses; {objective.loss} takes "
                "config.objective.alpha"
            )
        if objective.alpha is not None and not 0 <= objective.alpha <= 1:
            raise ConfigError(f"config.objective.alpha must lie in [0, 1]; got {objective.alpha!r}")
    else:
        if objective.alpha is not None:
            raise ConfigError(
                f"config.objective.alpha belongs to sigmoid losses; {objective.loss} takes "
                "config.objective.class_weights"
            )
        if objective.normalizer == "positives":
            raise ConfigError(
                f'config.objective.normalizer = "positives" belongs to sigmoid losses; {objective.loss} takes "valid"'
            )
