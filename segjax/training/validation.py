"""The check that a config makes sense, before anything is read."""

import difflib
import functools
import math

from ml_collections import ConfigDict

from segjax.models.resnet import STAGES as RESNETS
from segjax.models.unet import DOWNSAMPLINGS
from segjax.models.upsampling import UPSAMPLINGS
from segjax.training.defaults import ConfigError, check_not_renamed, defaults, leaves
from segjax.training.networks import NETWORKS, check_network
from segjax.training.objective import BINARY_LOSSES, PIXEL_LOSSES, REGION_LOSSES

_CHOICES = {
    "data.on_error": ("raise", "skip"),
    "model.name": tuple(NETWORKS),
    "model.norm": ("batch", "group", "none"),
    "model.padding": ("reflect", "zeros"),
    "model.dtype": ("float32", "bfloat16"),
    "model.downsample": DOWNSAMPLINGS,
    "model.upsample": tuple(UPSAMPLINGS),
    "model.encoder_depth": tuple(RESNETS),
    "model.dropout": ("none", "sampled", "analytic"),
    "model.dropout_mask": ("element", "channel"),
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
    "training.accumulate",
    "training.log_every",
    "training.evaluate_every",
    "training.checkpoint_every",
    "optimizer.learning_rate",
)
# From and to; None is allowed where the default is None.
_RANGES = {
    "model.num_samples": (1, math.inf),
    "model.deep_dropout": (0, math.inf),
    "model.output_stride": (1, math.inf),
    "model.hidden": (1, math.inf),
    "objective.gamma": (0, math.inf),
    "objective.boundary_factor": (0, math.inf),
    "objective.hard_threshold": (0, math.inf),
    "objective.negatives_per_positive": (0, math.inf),
    "objective.region_weight": (0, math.inf),
    "objective.uncertainty_weight": (0, math.inf),
    "optimizer.warmup_fraction": (0, 1),
    "training.skip_nonfinite": (0, math.inf),
    "training.prefetch": (0, math.inf),
}
_MINING = ("hard_fraction", "hard_threshold", "negatives_per_positive")
_TO_ONE = ("augment.crop_fraction", "objective.hard_fraction")
_BELOW_ONE = ("model.dropout_rate", "model.deep_dropout_rate", "training.ema_decay")


def check_known(key: str, value: object) -> None:
    """Raises `ConfigError`, with the nearest name, if `key` is no field of a config and no group of fields."""
    known = _known()
    if key in known or any(name.startswith(f"{key}.") for name in known):
        return
    check_not_renamed(key)
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean config.{close[0]}?" if close else ""
    raise ConfigError(f"unknown config key config.{key} = {value!r}{hint}")


@functools.cache
def _known() -> tuple[str, ...]:
    return tuple(leaves(defaults()))


def validate(config: ConfigDict) -> None:
    """Raises `ConfigError` naming the first field that is unknown, missing or makes no sense."""
    from segjax.data import DATASETS  # here, since the data layer loads TFDS, which takes seconds

    given = leaves(config)
    for key, value in given.items():
        check_known(key, value)
    for key in set(_known()) - given.keys():
        raise ConfigError(f"config.{key} is missing; start from segjax.training.defaults() to have every field")
    for key, choices in {**_CHOICES, "data.name": tuple(DATASETS)}.items():
        if given[key] not in choices:
            raise ConfigError(f"config.{key} must be one of {', '.join(map(str, choices))}; got {given[key]!r}")
    for key in _POSITIVE:
        if not given[key] > 0:
            raise ConfigError(f"config.{key} must be positive; got {given[key]!r}")
    for key, (low, high) in _RANGES.items():
        if given[key] is not None and not low <= given[key] <= high:
            raise ConfigError(f"config.{key} must be in [{low}, {high}]; got {given[key]!r}")
    if given["model.head_stddev"] is not None and not given["model.head_stddev"] > 0:
        raise ConfigError(f"config.model.head_stddev must be positive or None; got {given['model.head_stddev']!r}")
    for key in _TO_ONE:
        if given[key] is not None and not 0 < given[key] <= 1:
            raise ConfigError(f"config.{key} must be in (0, 1]; got {given[key]!r}")
    for key in _BELOW_ONE:
        if given[key] is not None and not 0 <= given[key] < 1:
            raise ConfigError(f"config.{key} must be in [0, 1); got {given[key]!r}")
    for key in ("mean", "std"):
        if len(config.data[key]) not in (1, config.data.channels):
            raise ConfigError(
                f"config.data.{key} needs 1 or config.data.channels = {config.data.channels} values; "
                f"got {config.data[key]!r}"
            )
    if not all(std > 0 for std in config.data.std) or not all(map(math.isfinite, config.data.mean)):
        raise ConfigError(
            f"config.data.std must be positive and config.data.mean finite; got {config.data.std!r} and "
            f"{config.data.mean!r}"
        )
    check_network(config)
    _validate_accumulation(config)
    _validate_phases(config)
    _validate_uncertainty(config)
    _validate_objective(config)


def _validate_accumulation(config: ConfigDict) -> None:
    """What is chosen or counted over a whole batch cannot be had from its pieces."""
    if config.training.accumulate == 1:
        return
    objective = config.objective
    given = [f"config.objective.{name}" for name in _MINING if objective[name] is not None]
    given += ["config.objective.region"] if objective.region != "none" else []
    given += ["config.training.gradient_budget"] if config.training.gradient_budget else []
    if given:
        raise ConfigError(
            f"{given[0]} looks at a whole batch and not at pieces of it: set it off, or config.training.accumulate to "
            f"1; got {config.training.accumulate!r}"
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
    if model.dropout == "sampled" and model.num_samples < 2:
        raise ConfigError(f"config.model.num_samples must be at least 2 for a variance; got {model.num_samples}")


def _validate_objective(config: ConfigDict) -> None:
    objective = config.objective
    if objective.void == "class" and objective.background is not None:
        raise ConfigError(
            "config.objective.background must be None where void is a class, which then is the background; got "
            f"{objective.background!r}"
        )
    (_validate_binary if objective.loss in BINARY_LOSSES else _validate_softmax)(objective)
    given = [f"config.objective.{name}" for name in _MINING if objective[name] is not None]
    if len(given) > 1:
        raise ConfigError(f"one criterion says which pixels count; got {' and '.join(given)}")


def _validate_binary(objective: ConfigDict) -> None:
    if objective.void == "class":
        raise ConfigError(f"config.objective.void = 'class' belongs to softmax losses; got {objective.loss}")
    if objective.background not in (None, 0):
        raise ConfigError(
            f"config.objective.background of {objective.loss} is class 0, against which class 1 is told apart; "
            f"got {objective.background!r}"
        )
    if objective.class_weights:
        raise ConfigError(
            f"config.objective.class_weights belongs to softmax losses; {objective.loss} takes config.objective.alpha"
        )
    if objective.alpha is not None and objective.loss == "hinge":
        raise ConfigError(f"config.objective.alpha belongs to sigmoid losses, hinge has none; got {objective.alpha!r}")
    if objective.alpha is not None and not 0 <= objective.alpha <= 1:
        raise ConfigError(f"config.objective.alpha must lie in [0, 1]; got {objective.alpha!r}")
    if objective.loss == "sigmoid_focal_star" and not objective.gamma > 0:
        raise ConfigError(
            f"config.objective.gamma must be above 0 for sigmoid_focal_star, which is divided by it; "
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
