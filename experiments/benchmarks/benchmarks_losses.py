"""Value and gradient of every loss, in comparison with other libraries, and with a copy of its logits as the limit.

Each library gets the logits in its own layout. A row is one definition. The mean of a baseline may differ by a constant
factor, which the comparison of the outputs corrects. The focal loss of several classes in segmentation-models-pytorch
is a sum of sigmoid focal losses and stands in their row.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.baselines import (
    EAGER,
    OURS,
    Candidate,
    Setting,
    Target,
    copy_of,
    fastest,
    measure,
    quotient,
    torch_here,
)
from segjax import losses
from segjax.reporting import Table

COPY = "copy of the logits"
PLAIN = "plain JAX"
GAMMA, ALPHA = 2.0, 0.25
TVERSKY = 0.3, 0.7
# Fraction of the value and of the largest gradient; the usual formulas of the baselines lose digits.
TOLERANCE = 2e-3
FOCAL = ("softmax focal", "sigmoid focal")
COLUMNS = (PLAIN, "optax", *EAGER, "torch.compile", COPY)
TITLE = "Losses: value and gradient"


def scene(shape: tuple[int, int, int], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 logits `[..., C]`, and labels in blocks of 32 pixels (fewer in small images) of every class."""
    rng, side = np.random.default_rng(0), min(32, *(n // 8 for n in shape[1:]))
    coarse = np.arange(np.prod([-(-n // side) for n in shape[1:]])) % classes
    coarse = np.stack([rng.permutation(coarse) for _ in range(shape[0])]).reshape(shape[0], -(-shape[1] // side), -1)
    labels = coarse.repeat(side, axis=1).repeat(side, axis=2)[:, : shape[1], : shape[2]]
    return rng.standard_normal((*shape, classes), np.float32) * 3, np.ascontiguousarray(labels, np.int32)


def rows(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns a function that measures each row, by name."""
    return {name: partial(_row, name, setting) for name in LOSSES}


def operands(name: str, shape: tuple[int, int, int], classes: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Returns the shapes of the float32 logits and the int32 labels or targets of a row."""
    each = (*shape, classes)
    logits = shape if name in _OF_ONE_LOGIT else each
    targets = each if name in _OF_TARGETS else shape
    return jax.ShapeDtypeStruct(logits, jnp.float32), jax.ShapeDtypeStruct(targets, jnp.int32)


def _row(name: str, setting: Setting) -> dict[str, Any]:
    logits, labels = scene(setting.shape, setting.classes)
    binary = name in _OF_ONE_LOGIT
    targets = np.asarray(labels[..., None] == np.arange(setting.classes), np.int32) if name in _OF_TARGETS else labels
    if binary:
        logits, targets = logits[..., 0].copy(), np.asarray(labels % 2, np.int32)
    z, y = jnp.asarray(logits), jnp.asarray(targets)
    compared = 1 if name in _BY_VALUE else 2
    candidates = [Candidate(OURS, partial(_jax_run, LOSSES[name], z, y), partial(_jax_outputs, compared))]
    for label, loss in _JAX.get(name, {}).items():
        candidates.append(Candidate(label, partial(_jax_run, loss, z, y), partial(_jax_outputs, compared)))
    for label, (make, scale) in _TORCH.get(name, {}).items():
        scale = setting.classes if scale == "classes" else scale
        candidates.append(
            Candidate(
                label, partial(_torch_run, make, label, logits, targets), partial(_torch_outputs, scale, compared)
            )
        )
    candidates.append(Candidate(COPY, partial(copy_of, z)))
    measured = measure(candidates, setting, TOLERANCE)
    return measured | {"extra_memory": {str(t): extra_memory(LOSSES[name], z, y, t) for t in ("float32", "bfloat16")}}


def extra_memory(loss: Callable[..., jax.Array], logits: jax.Array, targets: jax.Array, dtype: str) -> float:
    """Returns the temporary memory of the program for value and gradient, as a fraction of the logits."""
    shape = jax.ShapeDtypeStruct(logits.shape, dtype)
    program = jax.jit(jax.value_and_grad(loss)).lower(shape, targets).compile()
    return program.memory_analysis().temp_size_in_bytes / (logits.size * shape.dtype.itemsize)


def targets(measured: dict[str, Any]) -> list[Target]:
    """Returns target 1 of each row."""
    found = []
    for name, row in measured.items():
        ours = row["ms"][OURS]
        copies = 2.0 if name in FOCAL else 2.5
        found += [
            Target(1, f"{name} / the fastest eager baseline", quotient(ours, fastest(row, EAGER)), 1.0),
            Target(1, f"{name} / a copy of its logits", quotient(ours, row["ms"][COPY]), copies),
            *(
                Target(1, f"{name}, {dtype}: extra memory / logits", share, 1.5)
                for dtype, share in row["extra_memory"].items()
            ),
        ]
    return found


def tables(measured: dict[str, Any]) -> list[Table]:
    """Builds the table of temporary memory."""
    rows = [(name, *row["extra_memory"].values()) for name, row in measured.items()]
    return [Table("Temporary memory of value and gradient, in sizes of the logits", _MEMORY, rows)]


_MEMORY = ("segjax", "float32", "bfloat16")


def _jax_run(loss: Callable[..., jax.Array], logits: jax.Array, targets: jax.Array) -> Callable[[], Any]:
    return partial(jax.jit(jax.value_and_grad(loss)), logits, targets)


def _jax_outputs(compared: int, result: tuple[jax.Array, jax.Array]) -> list[np.ndarray]:
    return [np.asarray(array) for array in result[:compared]]


def _torch_run(make: Callable[[], Any], label: str, logits: np.ndarray, targets: np.ndarray) -> Callable[[], Any]:
    torch, loss = torch_here(), make()
    z = torch.from_numpy(np.moveaxis(logits, -1, 1) if logits.ndim == 4 else logits[:, None])
    z = z.contiguous().requires_grad_()
    y = torch.from_numpy(np.ascontiguousarray(np.moveaxis(targets, -1, 1)) if targets.ndim == 4 else targets).long()
    y = y[:, None] if logits.ndim == 3 else y
    if label == "torch.compile":
        loss = torch.compile(loss)

    def run() -> tuple[Any, Any]:
        z.grad = None
        value = loss(z, y)
        value.backward()
        return value.detach(), z.grad

    return run


def _torch_outputs(scale: float, compared: int, result: tuple[Any, Any]) -> list[np.ndarray]:
    value, gradient = (scale * x.numpy() for x in result)
    gradient = np.moveaxis(gradient, 1, -1) if gradient.shape[1] > 1 else gradient[:, 0]
    return [np.asarray(value, np.float32), gradient][:compared]


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "softmax cross entropy": lambda z, y: losses.mean(losses.softmax_cross_entropy(z, y)),
    "softmax focal": lambda z, y: losses.mean(losses.softmax_focal_loss(z, y, gamma=GAMMA)),
    "sigmoid cross entropy": lambda z, t: losses.mean(losses.sigmoid_cross_entropy(z, t)),
    "sigmoid focal": lambda z, t: losses.mean(losses.sigmoid_focal_loss(z, t, gamma=GAMMA, alpha=ALPHA)),
    "focal star": lambda z, t: losses.mean(losses.sigmoid_focal_star_loss(z, t, gamma=GAMMA, beta=1.0)),
    "hinge": lambda z, t: losses.mean(losses.hinge_loss(z, t)),
    "Huber": lambda z, t: losses.mean(losses.huber_loss(z, t.astype(z.dtype))),
    "Dice, each image": losses.dice_loss,
    "Dice, the batch": partial(losses.dice_loss, over_batch=True),
    "Jaccard, the batch": partial(losses.jaccard_loss, over_batch=True),
    "Tversky, the batch": partial(losses.tversky_loss, alpha=TVERSKY[0], beta=TVERSKY[1], over_batch=True),
    "generalised Dice": losses.generalized_dice_loss,
    "Lovász softmax": losses.lovasz_softmax_loss,
    "Lovász hinge, each image": partial(losses.lovasz_hinge_loss, over_batch=False),
}
# Rows whose targets are one-hot `[..., C]`, and rows with one logit per pixel.
_OF_TARGETS = ("sigmoid cross entropy", "sigmoid focal", "focal star", "hinge", "Huber")
_OF_ONE_LOGIT = ("Lovász hinge, each image",)
# The baselines subtract Jaccard losses near 1, which leaves no digits with many pixels. Only the value is compared
# here, and the gradient of small images in tests/losses.
_BY_VALUE = ("Lovász softmax", "Lovász hinge, each image")


def _plain_cross_entropy(z: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(z), y[..., None], axis=-1)[..., 0]


def _plain_focal(z: jax.Array, y: jax.Array) -> jax.Array:
    ce = _plain_cross_entropy(z, y)
    return jnp.mean((1 - jnp.exp(-ce)) ** GAMMA * ce)


def _optax(make: Callable[[Any], Callable[..., jax.Array]]) -> Callable[..., jax.Array]:
    def loss(z: jax.Array, y: jax.Array) -> jax.Array:
        import optax

        return jnp.mean(make(optax)(z, y))

    return loss


_JAX: dict[str, dict[str, Callable[..., jax.Array]]] = {
    "softmax cross entropy": {
        PLAIN: lambda z, y: jnp.mean(_plain_cross_entropy(z, y)),
        "optax": _optax(lambda optax: optax.softmax_cross_entropy_with_integer_labels),
    },
    "softmax focal": {PLAIN: _plain_focal},
    "sigmoid cross entropy": {
        "optax": _optax(lambda optax: lambda z, t: optax.sigmoid_binary_cross_entropy(z, t.astype(z.dtype)))
    },
    "sigmoid focal": {
        "optax": _optax(
            lambda optax: lambda z, t: optax.sigmoid_focal_loss(z, t.astype(z.dtype), alpha=ALPHA, gamma=GAMMA)
        )
    },
    "hinge": {"optax": _optax(lambda optax: lambda z, t: optax.hinge_loss(z, 2.0 * t - 1))},
    "Huber": {"optax": _optax(lambda optax: lambda z, t: optax.huber_loss(z, t.astype(z.dtype)))},
}


def _torch_cross_entropy() -> Any:
    return torch_here().nn.functional.cross_entropy


def _torch_focal() -> Any:
    torch = torch_here()

    def focal(z: Any, y: Any) -> Any:
        ce = torch.nn.functional.cross_entropy(z, y, reduction="none")
        return ((1 - torch.exp(-ce)) ** GAMMA * ce).mean()

    return focal


def _torch_sigmoid() -> Any:
    torch = torch_here()
    return lambda z, t: torch.nn.functional.binary_cross_entropy_with_logits(z, t.to(z.dtype))


def _torch_focal_star() -> Any:
    torch = torch_here()
    return lambda z, t: -torch.nn.functional.logsigmoid(GAMMA * (2 * t - 1) * z + 1).mean() / GAMMA


def _torch_hinge() -> Any:
    torch = torch_here()
    return lambda z, t: torch.relu(1 - (2 * t - 1) * z).mean()


def _torch_huber() -> Any:
    torch = torch_here()
    return lambda z, t: torch.nn.functional.huber_loss(z, t.to(z.dtype))


def _torchvision_focal() -> Any:
    from torchvision.ops import sigmoid_focal_loss

    return lambda z, t: sigmoid_focal_loss(z, t.to(z.dtype), ALPHA, GAMMA, reduction="mean")


def _kornia(name: str, binary: bool = False, **options: Any) -> Any:
    def make() -> Any:
        import kornia

        loss = getattr(kornia.losses, name)
        return lambda z, y: loss(z, y[:, 0] if binary else y, **options)

    return make


def _monai(name: str, **options: Any) -> Any:
    def make() -> Any:
        import monai

        if "Focal" not in name:  # FocalLoss does not have these arguments
            options.update(softmax=True, smooth_nr=0.0, smooth_dr=1e-7)
        loss = getattr(monai.losses, name)(**options)
        return lambda z, y: loss(z, y[:, None] if options.get("to_onehot_y") else y)

    return make


def _smp(name: str, mode: str = "multiclass", **options: Any) -> Any:
    def make() -> Any:
        import segmentation_models_pytorch as smp

        loss = getattr(smp.losses, name)(mode=mode, **options)
        # Its focal loss of several classes takes labels.
        return lambda z, y: loss(z, y.argmax(1)) if name == "FocalLoss" else loss(z, y)

    return make


# Factory of the loss, and the factor that makes its mean equal to ours.
_TORCH: dict[str, dict[str, tuple[Callable[[], Any], float | str]]] = {
    "softmax cross entropy": {"PyTorch": (_torch_cross_entropy, 1), "torch.compile": (_torch_cross_entropy, 1)},
    "softmax focal": {
        "PyTorch": (_torch_focal, 1),
        "torch.compile": (_torch_focal, 1),
        "kornia": (_kornia("focal_loss", alpha=None, gamma=GAMMA, reduction="mean"), "classes"),
        "MONAI": (_monai("FocalLoss", use_softmax=True, to_onehot_y=True, gamma=GAMMA), "classes"),
    },
    "sigmoid cross entropy": {"PyTorch": (_torch_sigmoid, 1), "torch.compile": (_torch_sigmoid, 1)},
    "sigmoid focal": {
        "torchvision": (_torchvision_focal, 1),
        "kornia": (_kornia("binary_focal_loss_with_logits", alpha=ALPHA, gamma=GAMMA, reduction="mean"), 1),
        "MONAI": (_monai("FocalLoss", gamma=GAMMA, alpha=ALPHA), 1),
    },
    "focal star": {"PyTorch": (_torch_focal_star, 1)},
    "hinge": {"PyTorch": (_torch_hinge, 1)},
    "Huber": {"PyTorch": (_torch_huber, 1)},
    "Dice, each image": {"MONAI": (_monai("DiceLoss", to_onehot_y=True), 1)},
    "Dice, the batch": {
        "MONAI": (_monai("DiceLoss", to_onehot_y=True, batch=True), 1),
        "SMP": (_smp("DiceLoss"), 1),
    },
    "Jaccard, the batch": {
        "MONAI": (_monai("DiceLoss", to_onehot_y=True, batch=True, jaccard=True), 1),
        "SMP": (_smp("JaccardLoss"), 1),
    },
    "Tversky, the batch": {
        "MONAI": (_monai("TverskyLoss", to_onehot_y=True, batch=True, alpha=TVERSKY[0], beta=TVERSKY[1]), 1),
        "SMP": (_smp("TverskyLoss", alpha=TVERSKY[0], beta=TVERSKY[1]), 1),
    },
    "generalised Dice": {"MONAI": (_monai("GeneralizedDiceLoss", to_onehot_y=True), 1)},
    "Lovász softmax": {"SMP": (_smp("LovaszLoss", per_image=False), 1)},
    "Lovász hinge, each image": {
        "kornia": (_kornia("lovasz_hinge_loss", binary=True), 1),
        "SMP": (_smp("LovaszLoss", mode="binary", per_image=True), 1),
    },
}
