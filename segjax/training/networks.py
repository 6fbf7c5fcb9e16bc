"""Which network a config means, and which of the config's fields each kind of network has."""

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from segjax import losses, models
from segjax.training.defaults import ConfigError, defaults
from segjax.training.objective import BINARY_LOSSES, num_outputs

# The class, and what its own fields are called in the config, without "model."; None there is the class' own default.
NETWORKS: dict[str, tuple[type[models.Network], dict[str, str]]] = {
    "unet": (
        models.UNet,
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
# Fields that every network has: its own name for them, and the config's.
_SHARED = {
    "norm": "norm",
    "remat": "remat",
    "dropout": "dropout",
    "heads": "num_samples",
    "rate": "dropout_rate",
    "mask": "dropout_mask",
    "deep_dropout": "deep_dropout",
    "deep_rate": "deep_dropout_rate",
}


def check_network(config: ConfigDict) -> None:
    """Raises `ConfigError` where a field is set that belongs to other networks than the config's."""
    own = set(NETWORKS[config.model.name][1].values())
    standard = defaults().model
    for field in sorted({field for _, fields in NETWORKS.values() for field in fields.values()} - own):
        if config.model[field] != standard[field]:
            owners = ", ".join(name for name, (_, fields) in NETWORKS.items() if field in fields.values())
            raise ConfigError(
                f"config.model.{field} belongs to {owners}; {config.model.name} has none: leave it at "
                f"{standard[field]!r}; got {config.model[field]!r}"
            )
    if config.model.pretrained and "encoder_depth" not in own:
        raise ConfigError(
            f"config.model.pretrained is for networks with an encoder; {config.model.name} has none; "
            f"got {config.model.pretrained!r}"
        )


def make_model(config: ConfigDict, num_classes: int, axis_name: str | None = None) -> models.Network:
    """The network of `config` for a set of `num_classes` classes.

    Raises:
      ConfigError: a binary loss on a set that has not exactly two classes, or a prior of the wrong length.
    """
    loss, prior = config.objective.loss, tuple(config.model.prior)
    if loss in BINARY_LOSSES and num_classes != 2:
        raise ConfigError(
            f"config.objective.loss = {loss!r} tells one rare class from the rest and needs a data set of 2 classes; "
            f"{config.data.name} has {num_classes}"
        )
    outputs = num_outputs(config, num_classes)
    if prior and len(prior) != outputs:
        raise ConfigError(f"config.model.prior needs {outputs} value(s) for {loss}; got {prior}")
    weights = tuple(config.objective.class_weights)
    if weights and len(weights) != outputs:
        raise ConfigError(
            f"config.objective.class_weights needs {outputs} values, one an output of {config.data.name}"
            f"{', void last' * (config.objective.void == 'class')}; got {weights}"
        )
    background = config.objective.background
    if background is not None and not 0 <= background < num_classes:
        raise ConfigError(
            f"config.objective.background must be a class of {config.data.name}, 0 to {num_classes - 1}; "
            f"got {background}"
        )
    head_bias = None
    if prior:
        bias_of = losses.prior_bias if loss in BINARY_LOSSES else losses.prior_bias_softmax
        # NumPy's float64: a rare class' π of 1e-8 and its 1 - π are not yet rounded.
        head_bias = tuple(float(b) for b in bias_of(np.asarray(prior, np.float64)))
    network, fields = NETWORKS[config.model.name]
    own = {argument: config.model[field] for argument, field in fields.items()}
    try:
        model = network(
            num_classes=outputs,
            dtype=jnp.dtype(config.model.dtype),
            axis_name=axis_name,
            head_bias=head_bias,
            head_kernel_stddev=config.model.head_stddev,
            **{argument: config.model[field] for argument, field in _SHARED.items()},
            **{argument: value for argument, value in own.items() if value is not None},
        )
        model.check()
    except ValueError as error:
        raise ConfigError(f"config.model of {config.model.name}: {error}") from error
    return model
