"""Configs: read, written, compared, and checked before a run starts."""

import difflib
from collections.abc import Iterator, Sequence

from etils import epath
from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from segjax.data import Source, class_pixels
from segjax.models.encoders import LITES
from segjax.models.pretrained import WEIGHT_FILES
from segjax.storage import StorageError, read_json, write_json
from segjax.training.fields import DETECTORS, FIELDS, INITIAL, NETWORKS, RENAMED, RENAMED_VALUES, TRACED
from segjax.training.objective import (
    BINARY_LOSSES,
    FREQUENCY_LOSSES,
    REGION_LOSSES,
    WEIGHTED_REGION_LOSSES,
    needs_frequencies,
)

CONFIG_FILE = "config.json"


class ConfigError(ValueError):
    """The config is wrong; the message names the field, what was expected and what was seen."""


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
        value = placeholder(field.optional) if field.optional else field.default
        if field.or_pair:
            value = FieldReference(value, field_type=object)  # accepts a string and a tuple
        (config[group] if group else config)[name] = value
    return config.lock()


def input_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Returns height, width and channels of the network's input: RGB if `data.channels` is still to be found."""
    return (*config.data.size, config.data.channels or 3)


def with_found_data(config: ConfigDict, source: Source) -> ConfigDict:
    """Returns a config with the channels, range of values, dtype and rare class of the training split.

    The dtype matters under a range only. Raises as `validate`, and for a binary loss that would learn the class that is
    not rare.
    """
    found = {"data.channels": source.channels, "data.range": source.value_range or "dtype"}
    found["data.dtype"] = source.value_range and source.dtype
    names, pixels = source.label_set.names, source.pixels
    if not config.data.rare_class and pixels and len(names) == 2 and not config.data.multilabel:
        found["data.rare_class"] = names[0 if pixels[0] < pixels[1] else 1]
    if needs_frequencies(config.objective) and not config.objective.class_frequencies:
        if config.objective.void == "class":
            raise ConfigError(
                "config.objective.class_frequencies must be set with config.objective.void='class': a positive number "
                f"for each of {', '.join(names)}, and void last"
            )
        pixels = class_pixels(source).sum(axis=0) if pixels is None else pixels
        found["objective.class_frequencies"] = tuple(max(1.0, float(count)) for count in pixels)
    found = from_leaves(leaves(config) | found)
    validate(found)
    loss, rare = found.objective.loss, found.data.rare_class
    if loss in BINARY_LOSSES and rare == names[0] and not found.data.box_classes:
        raise ConfigError(
            f"config.objective.loss={loss!r} treats the second class, {names[1]}, as the rare one, but the rare class "
            f"is {rare}. Either list {rare} (and its mask value) second in config.data.class_names, or use a softmax "
            f"loss, or set config.data.rare_class={names[1]}"
        )
    return found


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """Returns the config's fields by their dotted names."""
    flat = {}
    for key, value in config.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}": value}
    return flat


def comparable(config: ConfigDict) -> dict[str, object]:
    """Returns the fields that all hosts have to share, by their dotted names: all but paths and the reading of data."""
    own = ("data.data_dir", "data.manual_dir", "data.workers")
    return {f"config.{key}": value for key, value in leaves(config).items() if key not in own}


def changed(config: ConfigDict) -> list[tuple[str, object, object]]:
    """Returns (field, value, default) of the fields that differ from `defaults`.

    >>> config = defaults()
    >>> config.objective.gamma = 0.5
    >>> changed(config)
    [('objective.gamma', 0.5, 2.0)]
    """
    return [(k, value, FIELDS[k].default) for k, value in leaves(config).items() if value != FIELDS[k].default]


def from_leaves(values: dict[str, object]) -> ConfigDict:
    """Returns the complete config of a dictionary of `leaves`; raises ConfigError for an unknown or renamed field."""
    config = defaults()
    for key, value in values.items():
        check_known(key, value)
        node = config
        *path, last = key.split(".")
        for name in path:
            node = node[name]
        node[last] = _tuples(value)
    return config


def read_config(file: epath.Path) -> ConfigDict:
    """Returns the valid config in a workdir's file; raises ConfigError naming the file and the fault."""
    form = {"data.name": str, "model.name": str, "training.steps": int}  # the file of another program has none of these
    try:
        config = from_leaves(read_json(file, form, "the config of a run", "Restore it, or name another workdir"))
        validate(config)
        return config
    except StorageError as error:
        raise ConfigError(str(error)) from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}. If an older segjax wrote it, correct the field in this file") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        raise ConfigError(f"{file} is not the config of a run, or is damaged ({reason})") from error


def earlier_config(workdir: epath.Path, config: ConfigDict, others: Sequence[str]) -> ConfigDict:
    """Returns the config with which the run in `workdir` was started, and `config` for a new run.

    Raises:
      ConfigError: one of the two is invalid, or the folder has no config, but a file of `others`, as a run has them.
    """
    validate(config)
    if (workdir / CONFIG_FILE).exists():
        return read_config(workdir / CONFIG_FILE)
    for file in (workdir / name for name in others):
        if file.exists():
            raise ConfigError(
                f"{file}: exists, and {workdir} is not a run: it has no {CONFIG_FILE}. Choose another --workdir, or "
                "move the file away"
            )
    return config


def write_config(file: epath.Path, config: ConfigDict) -> None:
    """Writes a config, for `read_config`, into a folder that is made if it does not exist."""
    values = leaves(config)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, values)


def changes_since(earlier: ConfigDict, config: ConfigDict) -> list[str]:
    """Returns one line per field that differs from the config with which a run was started."""
    now, before = leaves(from_leaves(leaves(config))), leaves(earlier)
    changes = ((key, now[key], before[key]) for key in sorted(now) if now[key] != before[key])
    return [f"config.{key} is now {new!r}; the run was started with {old!r}" for key, new, old in changes]


def _tuples(value: object) -> object:  # JSON has lists only
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


def check_known(key: str, value: object) -> None:
    """Raises `ConfigError`, with the new or the nearest name, unless `key` is a field or a group of fields."""
    if key not in FIELDS and not any(name.startswith(f"{key}.") for name in FIELDS):
        raise ConfigError(unknown_field(key, f" = {value!r}"))


def unknown_field(key: str, value: str = "") -> str:
    """Returns the message for a field that does not exist, with its new or the nearest name."""
    if key in RENAMED:
        return f"config.{key} was renamed; use config.{RENAMED[key]}"
    close = difflib.get_close_matches(key, FIELDS, n=1)
    hint = f"did you mean config.{close[0]}?" if close else "segjax configs show rare_class lists the fields"
    return f"unknown config key config.{key}{value}; {hint}"


def validate(config: ConfigDict) -> None:
    """Raises `ConfigError` naming the first field that is unknown, missing or invalid."""
    given = leaves(config)
    for key, value in given.items():
        check_known(key, value)
    for key, field in FIELDS.items():
        if key not in given:
            raise ConfigError(f"config.{key} is missing; start from segjax.training.defaults() to have every field")
        if not field.accepts(given[key]):
            renamed = RENAMED_VALUES.get(key, {}).get(str(given[key]))
            hint = f", which was renamed; use {renamed!r}" if renamed else ""
            raise ConfigError(f"config.{key} must be {field.valid}; got {given[key]!r}{hint}")
    for problem in _contradictions(config):
        raise ConfigError(problem)


def _contradictions(config: ConfigDict) -> Iterator[str]:
    """Yields a message per value that is invalid for its length or because of another field."""
    data, model, objective, background = config.data, config.model, config.objective, config.objective.background
    for key in ("mean", "std"):
        known, channels = data.channels is not None or data.name != "folder", input_shape(config)[-1]
        if known and len(data[key]) not in (1, channels):
            yield f"config.data.{key} must have 1 value, or {channels}, one per image channel; got {data[key]!r}"
    for key in ("range", "orientation"):
        default = FIELDS[f"data.{key}"].default
        if data.name != "folder" and data[key] != default:
            yield no_effect(f"data.{key}", data[key], f"config.data.name={data.name!r}", default)
    low, high = config.augment.scale
    if low > high:
        yield f"config.augment.scale must be (lowest, highest), such as ({high}, {low}); got {config.augment.scale!r}"
    if data.name.startswith("road_debris") and data.scene_size[1] < 96:
        yield f"config.data.scene_size must be at least (64, 96), height and width; got {data.scene_size!r}"
    yield from _foreign_fields(model)
    yield from _detector_problems(config)
    yield from _multilabel_problems(config)
    yield from _phase_problems(config)
    yield from _evaluation_problems(config.training)
    mining = ("hard_fraction", "hard_threshold", "negatives_per_positive")
    mining = [f"config.objective.{name}={objective[name]!r}" for name in mining if objective[name] is not None]
    if len(mining) > 1:
        yield f"{' and '.join(mining)} cannot be combined; set all but one of them to None"
    whole = [(one, "None") for one in mining]
    whole += [(f"config.objective.region={objective.region!r}", "'none'")] * (objective.region != "none")
    if objective.calibration_weight is not None:
        whole.append((f"config.objective.calibration_weight={objective.calibration_weight!r}", "None"))
    whole += [("config.training.gradient_budget=True", "False")] * config.training.gradient_budget
    if whole and config.training.accumulate > 1:
        (given, off), parts = whole[0], f"config.training.accumulate={config.training.accumulate}"
        yield f"{given} needs the whole batch, which {parts} divides; set accumulate to 1, or the other to {off}"
    weight = objective.uncertainty_weight
    if weight is not None and model.dropout == "none":
        yield (
            f"config.objective.uncertainty_weight={weight!r} needs dropout; set config.model.dropout to 'sampled' or "
            "'analytic', or the weight to None"
        )
    if weight is not None and model.dropout == "sampled" and model.num_samples < 2:
        yield f"config.model.num_samples must be at least 2 for a variance; got {model.num_samples}"
    if objective.void == "class" and background is not None:
        yield (
            "config.objective.background must be None with config.objective.void='class', because void is then the "
            f"background; got {background!r}"
        )
    if objective.label_smoothing is not None and objective.loss != "softmax_cross_entropy":
        owner = "set config.objective.loss='softmax_cross_entropy'"
        yield no_effect("objective.label_smoothing", objective.label_smoothing, _loss(objective), None, owner)
    pasted = config.augment.outliers
    if objective.outlier_weight is not None and not pasted:
        yield (
            f"config.objective.outlier_weight={objective.outlier_weight!r} needs pasted outliers; set "
            "config.augment.outliers, for example to 2"
        )
    if pasted and objective.outlier_weight is None:
        yield (
            f"config.augment.outliers={pasted} needs config.objective.outlier_weight; set it, for example to 0.5, or "
            "to 0 for fragments without a loss"
        )
    if pasted and objective.void == "class":
        yield (
            f"config.augment.outliers={pasted} needs config.objective.void = 'ignore'; with 'class' the network "
            "would learn the fragments as void"
        )
    if config.augment.rare_classes and config.augment.rare_crops is config.augment.copy_paste is None:
        yield (
            f"config.augment.rare_classes={config.augment.rare_classes!r} needs config.augment.rare_crops or "
            "copy_paste; set one, for example rare_crops to 0.33"
        )
    if config.augment.copy_paste is not None and config.training.global_batch == 1:
        cause = "config.training.global_batch=1, because it pastes from the next image of the batch"
        yield no_effect("augment.copy_paste", config.augment.copy_paste, cause, None)
    if config.augment.rare_crops is not None and pasted and data.letterbox:
        yield (
            f"config.augment.rare_crops={config.augment.rare_crops!r}, config.augment.outliers={pasted} and "
            "config.data.letterbox=True cannot be combined; set rare_crops to None, outliers to 0 and "
            "config.objective.outlier_weight to None, or letterbox to False"
        )
    if objective.void == "class" and data.letterbox:
        yield (
            "config.objective.void must be 'ignore' with config.data.letterbox, whose padding would be learned; "
            f"got {objective.void!r}"
        )
    if objective.void == "class" and data.unseen_classes:
        yield (
            "config.objective.void must be 'ignore' with config.data.unseen_classes, whose void pixels would be "
            f"learned; got {objective.void!r}"
        )
    for key in ("class_weights", "region_class_weights"):
        if objective[key] and not any(objective[key]):
            yield (
                f"config.objective.{key} must have a positive value; () gives every class the weight 1; got "
                f"{objective[key]!r}"
            )
    if objective.class_weights_after is not None and not objective.class_weights:
        cause = "config.objective.class_weights=()"
        yield no_effect("objective.class_weights_after", objective.class_weights_after, cause, None)
    for key, (field, owners) in _OWNERS.items():
        default = FIELDS[f"objective.{key}"].default
        if objective[field] not in owners and objective[key] != default:
            cause = f"config.objective.{field}={objective[field]!r}"
            owner = f"set config.objective.{field} to {' or '.join(map(repr, owners))}"
            yield no_effect(f"objective.{key}", objective[key], cause, default, owner)
    if objective.logit_adjustment is not None and model.prior and objective.loss not in BINARY_LOSSES:
        yield (
            "config.model.prior must be () with config.objective.logit_adjustment, because the adjusted logits start "
            f"at the class frequencies; got {model.prior!r}. Set prior to (), or logit_adjustment to None"
        )
    if objective.class_frequencies and not needs_frequencies(objective):
        owner = f"set config.objective.loss to {' or '.join(map(repr, FREQUENCY_LOSSES))}, or logit_adjustment to 1"
        yield no_effect("objective.class_frequencies", objective.class_frequencies, _loss(objective), (), owner)
    default = FIELDS["objective.calibration_bins"].default
    if objective.calibration_weight is None and objective.calibration_bins != default:
        cause, owner = "config.objective.calibration_weight=None", "set the weight, for example to 1"
        yield no_effect("objective.calibration_bins", objective.calibration_bins, cause, default, owner)
    if objective.region == "tversky" and objective.region_squared and objective.tversky_alpha > objective.tversky_beta:
        yield (
            "config.objective.tversky_alpha must be at most tversky_beta with config.objective.region_squared=True, "
            "because a prediction short of the label would be better than the label; got "
            f"{objective.tversky_alpha!r} and {objective.tversky_beta!r}"
        )
    if objective.tversky_gamma < 1 and objective.tversky_beta == 0:
        yield (
            "config.objective.tversky_beta must be above 0 with config.objective.tversky_gamma="
            f"{objective.tversky_gamma!r}, whose slope is else infinite where a class is not predicted; got 0"
        )
    if objective.region == "lovasz_hinge" and objective.loss not in BINARY_LOSSES:
        yield f"config.objective.region='lovasz_hinge' needs a binary loss; with {_loss(objective)} set it to 'lovasz'"
    of_class_1 = objective.loss in BINARY_LOSSES and objective.region != "lovasz" and not data.multilabel
    if objective.region_class_weights and of_class_1:
        owner = "select a softmax loss"
        yield no_effect("objective.region_class_weights", objective.region_class_weights, _loss(objective), (), owner)
    yield from (_binary_problems if objective.loss in BINARY_LOSSES else _softmax_problems)(objective)


def no_effect(key: str, value: object, cause: str, default: object, owner: str = "") -> str:
    """Returns the message for a field that has no effect: the way back to its default, and the way to its `owner`."""
    other = f", or {owner}" if owner else ""
    return f"config.{key}={value!r} has no effect with {cause}; set it back to {default!r}{other}"


def _loss(objective: ConfigDict) -> str:
    return f"config.objective.loss={objective.loss!r}"


# Fields of one pixel loss or one region loss: the field that selects it, and its names.
_OWNERS = {
    **dict.fromkeys(("tversky_alpha", "tversky_beta", "tversky_gamma"), ("region", ("tversky",))),
    **dict.fromkeys(("cl_dice_alpha", "cl_dice_iterations"), ("region", ("cl_dice",))),
    "region_class_weights": ("region", WEIGHTED_REGION_LOSSES),
    "region_over": ("region", tuple(name for name in REGION_LOSSES if name not in ("none", "boundary"))),
    "region_absent": ("region", (*WEIGHTED_REGION_LOSSES, "generalized_dice")),
    "region_squared": ("region", ("dice", "generalized_dice", "jaccard", "tversky")),
    "poly_epsilon": ("loss", ("softmax_poly1", "sigmoid_poly1")),
    **dict.fromkeys(("ldam_margin", "ldam_scale"), ("loss", ("ldam",))),
    **dict.fromkeys(("seesaw_p", "seesaw_q"), ("loss", ("seesaw",))),
    "asymmetric_delta": ("loss", ("asymmetric_focal",)),
}


def _foreign_fields(model: ConfigDict) -> Iterator[str]:
    """Yields the fields of other networks, which would have no effect."""
    fields = {name: {*own.values()} for name, (_, own) in NETWORKS.items()}
    fields |= {name: {*own.values(), *_ANCHOR_FIELDS} for name, (_, own) in DETECTORS.items()}
    for name in sorted(set().union(*fields.values()) - fields[model.name]):
        default = FIELDS[f"model.{name}"].default
        if model[name] != default:
            owners = " or ".join(network for network, own in fields.items() if name in own)
            owner = f"set config.model.name to {owners}"
            yield no_effect(f"model.{name}", model[name], f"config.model.name={model.name!r}", default, owner)
    has_encoder = "encoder" in fields[model.name]
    of_encoder = model.pretrained == "package" or model.pretrained.endswith(WEIGHT_FILES)
    if of_encoder and (not has_encoder or model.encoder == "unet"):
        choice = "set config.model.encoder to 'resnet', or pretrained to ''" if has_encoder else "set it to ''"
        yield f"config.model.pretrained={model.pretrained!r} needs a pretrained encoder; {choice}"
    if model.pretrained == "package" and model.encoder not in LITES:
        choice = f"set config.model.encoder to {' or '.join(map(repr, LITES))}, or pretrained to a file"
        yield f"config.model.pretrained='package' has no weights of config.model.encoder={model.encoder!r}; {choice}"
    # The width of an EfficientNet-Lite is fixed; that of the U-Net's decoder is not.
    own = ("encoder_depth", "width") if model.encoder in LITES and model.name != "encoder_unet" else ("encoder_depth",)
    for name in own if model.encoder != "resnet" else ():
        default = FIELDS[f"model.{name}"].default
        if model[name] != default:
            cause = f"config.model.encoder={model.encoder!r}"
            yield no_effect(f"model.{name}", model[name], cause, default, "set encoder to 'resnet'")


_ANCHOR_FIELDS = ("anchor_base", "anchor_scales", "anchor_ratios")
# Fields that only detectors have, beside those of `model`, and fields that they do not have.
_DETECTOR_FIELDS = ("data.box_classes", "data.max_boxes", "objective.positive_iou", "objective.negative_iou")
_DETECTOR_FIELDS += ("objective.box_weight", "objective.box_beta")
_MAP_FIELDS = ("model.members", "model.dropout", "model.num_samples", "model.dropout_rate", "model.dropout_mask")
_MAP_FIELDS += ("model.deep_dropout", "model.deep_dropout_rate", "data.unseen_classes", "augment.outliers")
_MAP_FIELDS += ("augment.rare_crops", "augment.rare_classes", "augment.copy_paste", "data.sampling_temperature")
_MAP_FIELDS += ("objective.boundary_factor", "objective.region", "objective.uncertainty_weight", "objective.background")
_MAP_FIELDS += ("objective.logit_margin", "objective.calibration_weight", "training.gradient_budget")


def _detector_problems(config: ConfigDict) -> Iterator[str]:
    """Yields what a detector lacks, and the fields that only detectors or only segmentation networks have."""
    name, objects, objective, values = config.model.name, config.data.box_classes, config.objective, leaves(config)
    is_detector = name in DETECTORS
    if config.data.name == "coco" and not is_detector:
        yield (
            f"config.data.name='coco' has boxes and no masks, which {name} needs; set config.model.name to "
            "'retinanet', or make masks with segjax data masks"
        )
    for key in _MAP_FIELDS if is_detector else _DETECTOR_FIELDS:
        default, value = FIELDS[key].default, values[key]
        if value != default and is_detector:
            yield no_effect(key, value, f"the detector {name}", default)
        elif value != default:
            owner = f"set config.model.name to {' or '.join(DETECTORS)}"
            yield no_effect(key, value, f"config.model.name={name!r}", default, owner)
    if not is_detector:
        return
    if not objects:
        yield f"config.data.box_classes must name the classes that {name} detects, such as ('debris',); got ()"
    if len(objects) * config.data.max_boxes > 254 and config.data.name != "coco":
        yield (
            f"config.data.max_boxes must be at most {254 // len(objects)} with {len(objects)} box classes (254 objects "
            f"in all); got {config.data.max_boxes}"
        )
    if objective.loss not in BINARY_LOSSES:
        yield f"config.objective.loss of {name} must be one of {', '.join(BINARY_LOSSES)}; got {objective.loss!r}"
    if objective.negative_iou > objective.positive_iou:
        yield (
            f"config.objective.negative_iou must be at most config.objective.positive_iou = {objective.positive_iou!r}"
            f"; got {objective.negative_iou!r}"
        )


# Fields of one class per pixel.
_EXCLUSIVE_FIELDS = ("data.mask_values", "data.mask_colours", "data.void_colours", "data.rare_class")
_EXCLUSIVE_FIELDS += ("data.unseen_classes", "augment.outliers")
_EXCLUSIVE_FIELDS += ("objective.background", "objective.uncertainty_weight", "objective.logit_margin")
_EXCLUSIVE_FIELDS += ("training.gradient_budget",)


def _multilabel_problems(config: ConfigDict) -> Iterator[str]:
    """Yields what classes that overlap lack, and the fields that only exclusive classes have."""
    objective, values = config.objective, leaves(config)
    if not config.data.multilabel:
        return
    if config.data.name != "folder":
        yield no_effect("data.multilabel", True, f"config.data.name={config.data.name!r}", False)
    if config.model.name in DETECTORS:
        yield no_effect("data.multilabel", True, f"the detector {config.model.name}", False)
    if objective.loss not in BINARY_LOSSES:
        yield (
            f"config.objective.loss must be one of {', '.join(BINARY_LOSSES)} with config.data.multilabel=True, a "
            f"sigmoid per class; got {objective.loss!r}"
        )
    if objective.region == "lovasz":
        yield (
            "config.objective.region must be 'none' or a region loss of independent channels with "
            "config.data.multilabel=True; got 'lovasz', which is of a softmax: use 'lovasz_hinge'"
        )
    for key in _EXCLUSIVE_FIELDS:
        if values[key] != (default := FIELDS[key].default):
            yield (
                f"config.{key}={values[key]!r} is for one class per pixel; set it back to {default!r}, or "
                "config.data.multilabel to False"
            )


def _phase_problems(config: ConfigDict) -> Iterator[str]:
    phases = config.training.phases
    for phase in phases:
        fields = [FIELDS[key] for key in ("augment.crop_fraction", "training.steps", "optimizer.learning_rate")]
        if len(phase) != 3 or not all(field.accepts(value) for field, value in zip(fields, phase, strict=True)):
            crop, steps, rate = (field.valid for field in fields)
            yield (
                "each phase of config.training.phases must be (crop fraction, steps, learning rate), such as "
                f"(0.5, 600, 0.002): {crop}, {steps} and {rate}; got {phase!r}"
            )
    total = sum(phase[1] for phase in phases)
    if phases and total != config.training.steps:
        yield (
            f"the steps of config.training.phases add up to {total}, but config.training.steps is "
            f"{config.training.steps}; set config.training.steps={total}, or change the phases"
        )
    # A field that the phases replace must not look as if it had an effect.
    peak = max((phase[2] for phase in phases), default=config.optimizer.learning_rate)
    if config.optimizer.learning_rate != peak:
        yield (
            f"config.optimizer.learning_rate={config.optimizer.learning_rate!r} has no effect with "
            f"config.training.phases, whose highest rate is {peak!r}: set them equal, or change the phases"
        )
    crops = min((phase[0] for phase in phases), default=config.augment.crop_fraction)
    if config.augment.rare_crops is not None and crops == 1 and config.augment.scale[1] <= 1:
        yield (
            f"config.augment.rare_crops={config.augment.rare_crops!r} has no effect without crops: set "
            "config.augment.crop_fraction below 1, for example to 0.5"
        )
    if phases and config.augment.crop_fraction != 1:
        yield (
            f"config.augment.crop_fraction={config.augment.crop_fraction!r} has no effect with "
            "config.training.phases: leave it at 1, or change the phases"
        )


def _evaluation_problems(training: ConfigDict) -> Iterator[str]:
    number = -(-training.steps // training.evaluate_every)
    cause = f"{number} evaluation{'s' * (number > 1)} (training.steps / training.evaluate_every)"
    for key, fewest in (("evaluate_examples", 2), ("patience", (training.patience or 0) + 2)):
        if training[key] is not None and number < fewest:
            yield no_effect(f"training.{key}", training[key], cause, None, "evaluate more often")


def _binary_problems(objective: ConfigDict) -> Iterator[str]:
    loss, alpha, gamma = objective.loss, objective.alpha, objective.gamma
    if objective.void == "class":
        yield no_effect("objective.void", "class", _loss(objective), "ignore", "select a softmax loss")
    if objective.background not in (None, 0):
        yield f"config.objective.background of {loss} must be class 0 or None; got {objective.background!r}"
    if objective.class_weights:
        owner = "use config.objective.alpha" if loss != "hinge" else "select a softmax loss"
        yield no_effect("objective.class_weights", objective.class_weights, _loss(objective), (), owner)
    if objective.logit_adjustment is not None:
        owner = "use config.model.prior"
        yield no_effect("objective.logit_adjustment", objective.logit_adjustment, _loss(objective), None, owner)
    if alpha is not None and loss == "hinge":
        yield no_effect("objective.alpha", alpha, _loss(objective), None)
    if loss == "sigmoid_focal_star" and not gamma > 0:
        yield f"config.objective.gamma must be above 0 for sigmoid_focal_star, which divides by it; got {gamma!r}"


def _softmax_problems(objective: ConfigDict) -> Iterator[str]:
    loss, weights = objective.loss, objective.class_weights
    has_weights = loss not in ("seesaw", "asymmetric_focal")
    if objective.alpha is not None:
        owner = "use config.objective.class_weights" if has_weights else ""
        yield no_effect("objective.alpha", objective.alpha, _loss(objective), None, owner)
    if weights and not has_weights:
        yield no_effect("objective.class_weights", weights, _loss(objective), ())
    if objective.background is None and objective.void != "class":
        for field, value in (("normalizer", "positives"), ("negatives_per_positive", objective.negatives_per_positive)):
            if value is not None and objective[field] == value:
                yield (
                    f"config.objective.{field}={value!r} has to distinguish the background; set "
                    "config.objective.background to the index of its class, for example 0"
                )
