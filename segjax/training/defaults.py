"""Every field a config can have, its default, and which of them are values to the compiled step."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Fields that change values and never the program: cells of a sweep that differ in nothing else share one compilation.
# These say what a run begins with, ...
INITIAL = ("seed", "model.prior", "model.head_stddev")
# ... and these are arguments of every step; whether one is set at all (None, () or not) is part of the program.
TRACED = (
    "augment.crop_fraction",
    "model.dropout_rate",
    "model.deep_dropout_rate",
    "objective.gamma",
    "objective.beta",
    "objective.alpha",
    "objective.class_weights",
    "objective.boundary_factor",
    "objective.hard_fraction",
    "objective.hard_threshold",
    "objective.negatives_per_positive",
    "objective.region_weight",
    "objective.uncertainty_weight",
    "optimizer.learning_rate",
    "training.ema_decay",
)

# Fields that were renamed: the old name and the new one.
RENAMED = {
    "model.rates": "model.aspp_dilations",
    "model.rate": "model.dropout_rate",
    "model.mask": "model.dropout_mask",
    "model.heads": "model.num_samples",
    "model.deep_rate": "model.deep_dropout_rate",
}


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
    data.on_error = "raise"  # at a bad image or mask, before training; or "skip" it, counted and named
    data.workers = 1  # loader processes; 0: read in this one

    config.augment = augment = ConfigDict()
    augment.crop_fraction = 1.0  # side of the random crop as a share of the image's; traced
    augment.flip = True
    augment.scale = (1.0, 1.0)  # random zoom, from and to
    augment.rotation = 0.0  # degrees, either way
    augment.brightness = 0.0
    augment.contrast = 0.0

    config.model = model = ConfigDict()
    model.name = "unet"  # a key of segjax.training.networks.NETWORKS, which says whose the next ten fields are
    model.width = 16  # channels of the first level
    model.depth = 4  # poolings
    model.padding = "reflect"
    model.downsample = "max"  # or "stride"
    # transpose3, transpose4 (overlapping), pixel_shuffle (with ICNR), nearest, bilinear, bed_of_nails, max_unpool
    model.upsample = "transpose"
    model.strips = 1  # of rows that an image is cut into: 16 / images a chip for a TPU, 1 for a CPU
    model.pack = 1  # columns side by side in the first level's channels: 128 / width for a TPU, 1 for a CPU
    model.encoder_depth = 18  # of a ResNet: 18, 34, 50, 101
    model.output_stride = placeholder(int)  # of the coarsest features, or FCN's finest score; None: the network's own
    model.aspp_dilations = placeholder(tuple)  # dilations of DeepLab's ASPP; None: the network's own, for large images
    model.hidden = placeholder(int)  # channels of FCN's fc6 and fc7, of DeepLab's ASPP; None: the network's own
    # A torchvision ResNet's weights, .safetensors or .pth, for the encoder to begin with; data.mean and std are then
    # to be those it was trained with.
    model.pretrained = ""
    model.norm = "batch"
    model.dtype = "float32"  # of the computation; parameters are float32
    model.remat = False  # compute the blocks' activations again in the backward pass: less memory, more time
    model.prior = ()  # binary losses: (π,); softmax: a frequency a class; (): no prior bias
    model.head_stddev = placeholder(float)  # of the head's initial kernel; None: the usual fan-in scale
    model.dropout = "none"  # heads whose variance is the uncertainty: "sampled" (K of them) or "analytic" (K = ∞)
    model.num_samples = 3  # K
    model.dropout_rate = 0.2  # p of the heads' dropout; traced
    model.dropout_mask = "element"  # one number per feature and pixel, or per "channel" and image: far cheaper
    model.deep_dropout = 0  # dropout inside the network too: after so many of the deepest blocks, each way
    model.deep_dropout_rate = 0.5  # and its p; traced

    config.objective = objective = ConfigDict()
    objective.loss = "softmax_cross_entropy"
    objective.gamma = 2.0  # of the focal losses
    objective.beta = 1.0  # of FL*
    objective.alpha = placeholder(float)  # sigmoid losses: weight of class 1, 1 - α for the rest; None: 1 and 1
    objective.class_weights = ()  # softmax losses: a weight an output; (): 1 each
    objective.normalizer = "valid"  # the sum is divided by all labelled pixels, or by the "positives" among them
    objective.void = "ignore"  # or "class": void pixels are learned as one more class, the last output
    objective.boundary_factor = placeholder(float)  # weight k of the pixels on a boundary of the labels; None: off
    objective.boundary_mode = "outer"  # which pixels these are; scikit-image's words
    objective.hard_fraction = placeholder(float)  # OHEM: the share of hardest pixels that count; None: all, or ...
    objective.hard_threshold = placeholder(float)  # ... those with a loss from this on, or ...
    objective.negatives_per_positive = placeholder(float)  # ... positives and so many hardest negatives for each
    objective.region = "none"  # a region loss to add: dice, generalized_dice, jaccard, lovasz
    objective.region_weight = 1.0
    objective.uncertainty_weight = placeholder(float)  # C of the heads' variance as a penalty; None: off
    # The class of which the penalty is free, and which is no positive. None: class 0 of a binary loss, void where it is
    # a class, else there is none.
    objective.background = placeholder(int)

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
    training.accumulate = 1  # pieces in which each device takes its share of a batch: the same gradients, less memory
    training.log_every = 10
    training.evaluate_every = 250
    training.checkpoint_every = 250
    training.phases = ()  # (crop fraction, steps, learning rate) each, in place of the three fields; steps add up
    training.ema_decay = placeholder(float)  # evaluate a running mean of the parameters; None: the last ones
    training.skip_nonfinite = 0  # leave steps out that are not finite, stop at so many in a row; 0: stop at the first
    training.donate = True  # a step takes over the memory of the state before it; off, both exist for a while
    training.prefetch = 1  # batches on the devices ahead of the step that works
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


def changed(config: ConfigDict) -> list[tuple[str, object, object]]:
    """(field, value, default) of the fields that differ from `defaults`.

    >>> config = defaults()
    >>> config.objective.gamma = 0.5
    >>> changed(config)
    [('objective.gamma', 0.5, 2.0)]
    """
    usual = leaves(defaults())
    return [(field, value, usual[field]) for field, value in leaves(config).items() if value != usual[field]]


def from_leaves(values: dict[str, object]) -> ConfigDict:
    """A complete config from `leaves`' dictionary, also after its way through JSON (lists become tuples again)."""
    config = defaults()
    for key, value in values.items():
        check_not_renamed(key)
        node = config
        *path, last = key.split(".")
        for name in path:
            node = node[name]
        node[last] = _tuples(value)
    return config


def check_not_renamed(key: str) -> None:
    """Raises `ConfigError` naming the new field if `key` is the old name of one."""
    if key in RENAMED:
        raise ConfigError(f"config.{key} was renamed; use config.{RENAMED[key]}")


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def program(config: ConfigDict) -> tuple[tuple[str, object], ...]:
    """What of `config` is neither `INITIAL` nor `TRACED`: runs for which this is equal take the same compiled step.

    >>> one, other = defaults(), defaults()
    >>> one.objective.gamma, one.objective.alpha, other.objective.alpha = 0.5, 0.25, 0.75
    >>> program(one) == program(other), program(one) == program(defaults())
    (True, False)
    """

    def is_set(value: object) -> bool:
        return value is not None and value != ()

    fields = {key: value for key, value in sorted(leaves(config).items()) if key not in INITIAL}
    return tuple((key, is_set(value) if key in TRACED else value) for key, value in fields.items())
