"""Losses of other libraries and their gradients on stored inputs: `peers.npz`, read by `test_peers.py`.

    python tests/losses/golden/make.py --lovasz path/to/lovasz_losses.py

needs PyTorch, torchvision, segmentation-models-pytorch, MONAI and fvcore, none of which segjax depends on (the versions
last used stand in `versions.json`, which this writes too), and the Lovász authors' file: `pytorch/lovasz_losses.py` of
github.com/bermanmaxim/LovaszSoftmax, commit 188332eb284aa492d1c713c30a051d3f13ec2e6b. The same versions write the same
bytes.

Every case is a function of the logits (class last, as segjax has them): `NAME` in the file is what it returned, of any
shape and with whatever NaN it has, `NAME/gradient` the gradient of its sum by the logits. float64 unless the name ends
in "float32": so that what differs is the convention and not the rounding.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
from pathlib import Path

import fvcore.nn
import monai.losses
import numpy as np
import torch
import torchvision
from segmentation_models_pytorch import losses as smp
from segmentation_models_pytorch.losses import _functional as smp_functional
from torch.nn import functional

HERE = Path(__file__).parent
VOID, CLASSES = 255, 4
GAMMAS = (0.0, 0.5, 2.0, 5.0)
PACKAGES = ("fvcore", "monai", "numpy", "segmentation-models-pytorch", "torch", "torchvision")


def inputs():
    """Returns the arguments of all cases. `sparse`: class 2 is only in the first image, class 3 in none."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 5, CLASSES)) * 2
    labels = rng.integers(0, CLASSES, size=logits.shape[:-1])
    sparse = np.where(labels == 3, 0, labels)
    sparse[1] = np.where(sparse[1] == 2, 1, sparse[1])
    void = rng.uniform(size=labels.shape) < 0.3
    magnitude = np.array([0.5, 5, 12, 19.4, 40, 90, 300, 1e4])
    extreme = np.repeat(np.concatenate([-magnitude, magnitude]), 3)
    return {
        "logits": logits,
        "labels": labels,
        "sparse": sparse,
        "void": void,
        "weights": np.array([0.3, 1.0, 2.0, 0.7]),
        "scores": rng.normal(size=labels.shape) * 2,
        "targets": (rng.uniform(size=labels.shape) < 0.4).astype(np.int64),
        "soft": rng.uniform(size=labels.shape),
        # Every magnitude with every label: 3 classes of logits z, 0 and -z; two classes of the logit z.
        "extreme": np.stack([extreme, 0 * extreme, -extreme], axis=-1).reshape(1, 1, -1, 3),
        "extreme labels": np.tile([0, 1, 2], extreme.size // 3).reshape(1, 1, -1),
        "extreme scores": extreme,
        "extreme targets": np.tile([0, 1, 1], extreme.size // 3),
    }


def torch_cases(x):
    """Yields the cases of PyTorch itself."""
    logits, labels, weights = x["logits"], x["labels"], x["weights"]
    void = labels.masked_fill(x["void"], VOID)
    scores, targets = x["scores"], x["targets"]
    poisoned = logits.masked_fill(x["void"][..., None], float("nan"))

    def cross_entropy(labels, **options):
        return lambda z: functional.cross_entropy(first(z), labels, **options)

    def binary(targets):
        return lambda z: functional.binary_cross_entropy_with_logits(z, targets.to(z.dtype), reduction="none")

    yield "torch/cross_entropy", logits, cross_entropy(labels, reduction="none")
    yield (
        "torch/cross_entropy, weighted and smoothed",
        logits,
        cross_entropy(labels, reduction="none", weight=weights, label_smoothing=0.1),
    )
    yield "torch/cross_entropy, mean", logits, cross_entropy(void, ignore_index=VOID)
    yield "torch/cross_entropy, weighted mean", logits, cross_entropy(void, ignore_index=VOID, weight=weights)
    yield "torch/cross_entropy, NaN under void", poisoned, cross_entropy(void, ignore_index=VOID)
    yield "torch/cross_entropy, extreme", x["extreme"], cross_entropy(x["extreme labels"], reduction="none")
    yield (
        "torch/cross_entropy, extreme, float32",
        x["extreme"].float(),
        cross_entropy(x["extreme labels"], reduction="none"),
    )
    yield "torch/binary_cross_entropy, soft", scores, binary(x["soft"])
    yield "torch/binary_cross_entropy, extreme", x["extreme scores"], binary(x["extreme targets"])
    yield "torch/binary_cross_entropy, extreme, float32", x["extreme scores"].float(), binary(x["extreme targets"])
    yield (
        "torch/huber",
        scores,
        lambda z: functional.huber_loss(z, x["soft"], delta=0.5, reduction="none"),
    )
    yield "torch/smooth_l1", scores, lambda z: functional.smooth_l1_loss(z, x["soft"], beta=0.5, reduction="none")
    yield (
        "torch/margin_ranking",
        scores,
        lambda z: functional.margin_ranking_loss(z, torch.zeros_like(z), 2 * targets - 1, margin=1, reduction="none"),
    )


def focal_cases(x):
    """Yields sigmoid and softmax focal losses per pixel: torchvision, fvcore, segmentation-models-pytorch, MONAI."""
    scores, targets, soft = x["scores"], x["targets"], x["soft"]
    logits, labels = x["logits"], x["labels"]
    far, far_targets, far_labels = x["extreme scores"].float(), x["extreme targets"], x["extreme labels"]

    def torchvision_focal(targets, **options):
        return lambda z: torchvision.ops.sigmoid_focal_loss(z, targets.to(z.dtype), **options)

    def smp_binary(targets, **options):
        return lambda z: smp.FocalLoss("binary", reduction="none", **options)(z, targets)

    def monai_focal(labels, reduction="none", **options):
        loss = monai.losses.FocalLoss(to_onehot_y=True, reduction=reduction, **options)
        return lambda z: loss(first(z), labels[:, None])

    for gamma in GAMMAS:
        yield f"torchvision/focal, γ {gamma}", scores, torchvision_focal(targets, alpha=0.25, gamma=gamma)
        yield f"torchvision/focal, soft, γ {gamma}", scores, torchvision_focal(soft, alpha=-1, gamma=gamma)
        yield f"smp/focal, binary, γ {gamma}", scores, smp_binary(targets, alpha=0.25, gamma=gamma)
        yield (
            f"smp/softmax focal, γ {gamma}",
            logits,
            lambda z, g=gamma: smp_functional.softmax_focal_loss_with_logits(
                first(z), labels, gamma=g, reduction="none"
            ),
        )
        yield (
            f"monai/focal, sigmoid, γ {gamma}, float32",
            logits.float(),
            monai_focal(labels, alpha=0.25, gamma=gamma),
        )
        yield (
            f"monai/focal, softmax, γ {gamma}, float32",
            logits.float(),
            monai_focal(labels, alpha=x["weights"].tolist(), gamma=gamma, use_softmax=True),
        )
    for gamma in (0.5, 2.0):
        yield (
            f"torchvision/focal, extreme, γ {gamma}, float32",
            far,
            torchvision_focal(far_targets, alpha=-1, gamma=gamma),
        )
        yield f"smp/focal, binary, extreme, γ {gamma}, float32", far, smp_binary(far_targets, gamma=gamma)
    yield (
        "monai/focal, softmax, extreme, γ 0.5, float32",
        x["extreme"].float(),
        monai_focal(far_labels, gamma=0.5, use_softmax=True),
    )
    # One channel is both MONAI's "class 1" and the target itself, with nothing to turn into one-hot.
    yield (
        "monai/focal, sigmoid, extreme, γ 0.5, float32",
        far,
        lambda z: monai.losses.FocalLoss(gamma=0.5, reduction="none")(z[None, None], far_targets[None, None])[0, 0],
    )
    void = labels.masked_fill(x["void"], VOID)
    poisoned = logits.masked_fill(x["void"][..., None], float("nan"))
    yield "monai/focal, softmax, scalar α, float32", logits.float(), monai_focal(labels, alpha=0.25, use_softmax=True)
    yield (
        "monai/focal, sigmoid, α of each class, float32",
        logits.float(),
        monai_focal(labels, alpha=x["weights"].tolist()),
    )
    yield "monai/focal, softmax, mean, float32", logits.float(), monai_focal(labels, "mean", use_softmax=True)
    for name, z in (("void", logits), ("NaN under void", poisoned)):
        yield (
            f"monai/focal, softmax, mean, {name}, float32",
            z.float(),
            monai_focal(void, "mean", use_softmax=True, ignore_index=VOID),
        )
    yield (
        "smp/focal, multiclass",
        logits,
        lambda z: smp.FocalLoss("multiclass", alpha=0.25, ignore_index=VOID)(first(z), void),
    )
    yield (
        "fvcore/focal star, float32",
        scores.float(),
        lambda z: fvcore.nn.sigmoid_focal_loss_star(z, targets, alpha=0.25, gamma=2),
    )


def region_cases(x):
    """Yields region losses of segmentation-models-pytorch and MONAI, without smoothing."""
    logits, labels, sparse = x["logits"], x["labels"], x["sparse"]
    void = sparse.masked_fill(x["void"], VOID)
    poisoned = logits.masked_fill(x["void"][..., None], float("nan"))
    half_void = torch.stack([labels[0], torch.full_like(labels[1], VOID)])

    def of_smp(loss, labels, **options):
        return lambda z: loss("multiclass", **options)(first(z), labels)

    def of_monai(loss, labels, **options):
        options = {"softmax": True, "smooth_nr": 0, "smooth_dr": 0} | options
        if options.get("ignore_index") is not None:
            return lambda z: loss(to_onehot_y=True, **options)(first(z), labels[:, None])
        # Made here, for MONAI's one-hot targets are float32, and so would be the square root of their squared sum.
        one_hot = first(functional.one_hot(labels, CLASSES).double())
        return lambda z: loss(**options)(first(z), one_hot)

    for name, loss in (("dice", smp.DiceLoss), ("jaccard", smp.JaccardLoss)):
        yield f"smp/{name}", logits, of_smp(loss, labels)
        yield f"smp/{name}, sparse", logits, of_smp(loss, void, ignore_index=VOID)
        yield f"smp/{name}, classes", logits, of_smp(loss, labels, classes=[1, 3])
    yield "smp/dice, NaN under void", poisoned, of_smp(smp.DiceLoss, void, ignore_index=VOID)
    yield "smp/dice, binary", x["scores"], lambda z: smp.DiceLoss("binary")(z[:, None], x["targets"][:, None])
    for gamma in (1.0, 2.0):
        yield f"smp/tversky, γ {gamma}", logits, of_smp(smp.TverskyLoss, labels, alpha=0.3, beta=0.7, gamma=gamma)

    dice, generalized = monai.losses.DiceLoss, monai.losses.GeneralizedDiceLoss
    for batch in (False, True):
        for squared in (False, True):
            for jaccard in (False, True):
                name = f"monai/dice, batch {batch}, squared {squared}, jaccard {jaccard}"
                yield name, logits, of_monai(dice, labels, batch=batch, squared_pred=squared, jaccard=jaccard)
        yield f"monai/dice, sparse, batch {batch}", logits, of_monai(dice, void, batch=batch, ignore_index=VOID)
        yield (
            f"monai/tversky, batch {batch}",
            logits,
            of_monai(monai.losses.TverskyLoss, labels, batch=batch, alpha=0.3, beta=0.7),
        )
        yield f"monai/generalized dice, batch {batch}", logits, of_monai(generalized, labels, batch=batch)
        yield f"monai/generalized dice, sparse, batch {batch}", logits, of_monai(generalized, sparse, batch=batch)
    yield "monai/dice, no background", logits, of_monai(dice, labels, include_background=False)
    yield "monai/dice, NaN under void", poisoned, of_monai(dice, void, ignore_index=VOID)
    yield "monai/dice, a void image", logits, of_monai(dice, half_void, ignore_index=VOID)
    smooth = {"smooth_nr": 1e-5, "smooth_dr": 1e-5}
    yield "monai/dice, a void image, smoothed", logits, of_monai(dice, half_void, ignore_index=VOID, **smooth)


def smoothing_cases(x):
    """Yields SoftCrossEntropyLoss of segmentation-models-pytorch."""
    void = x["labels"].masked_fill(x["void"], VOID)
    yield (
        "smp/soft cross entropy",
        x["logits"],
        lambda z: smp.SoftCrossEntropyLoss(reduction="none", smooth_factor=0.1)(first(z), x["labels"]),
    )
    yield (
        "smp/soft cross entropy, void",
        x["logits"],
        lambda z: smp.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=VOID)(first(z), void),
    )


def lovasz_cases(x, authors):
    """Yields the Lovász authors' file and smp's copy, in float32 only, since their dot refuses other dtypes."""
    logits, scores = x["logits"].float(), x["scores"].float()
    void = x["sparse"].masked_fill(x["void"], VOID)
    targets = x["targets"].masked_fill(x["void"], VOID)

    def softmax(**options):
        return lambda z: authors.lovasz_softmax(first(z).softmax(1), void, ignore=VOID, **options)

    for per_image in (False, True):
        for only_present in (False, True)[per_image:]:
            name = f"authors/lovasz softmax, per image {per_image}, only present {only_present}, float32"
            yield name, logits, softmax(per_image=per_image, only_present=only_present)
        yield (
            f"authors/lovasz hinge, per image {per_image}, float32",
            scores,
            lambda z, p=per_image: authors.lovasz_hinge(z, targets, per_image=p, ignore=VOID),
        )
        yield (
            f"smp/lovasz softmax, per image {per_image}, float32",
            logits,
            lambda z, p=per_image: smp.LovaszLoss("multiclass", per_image=p, ignore_index=VOID)(first(z), void),
        )
        yield (
            f"smp/lovasz hinge, per image {per_image}, float32",
            scores,
            lambda z, p=per_image: smp.LovaszLoss("binary", per_image=p, ignore_index=VOID)(z, targets),
        )
    void_image_first = torch.stack([torch.full_like(void[0], VOID), x["labels"][1]])
    yield (
        "smp/lovasz softmax, a void image first, float32",
        logits,
        lambda z: smp.LovaszLoss("multiclass", per_image=True, ignore_index=VOID)(first(z), void_image_first),
    )
    void_targets_first = torch.stack([torch.full_like(void[0], VOID), x["targets"][1]])
    yield (
        "authors/lovasz hinge, a void image first, float32",
        scores,
        lambda z: authors.lovasz_hinge(z, void_targets_first, ignore=VOID),
    )
    empty = torch.zeros_like(targets)
    yield (
        "authors/lovasz hinge, no positive, float32",
        scores,
        lambda z: authors.lovasz_hinge(z, empty, per_image=False),
    )


def first(logits):
    """Returns the logits with the class axis second, as in PyTorch."""
    return logits.movedim(-1, 1).contiguous()


def evaluated(logits, loss):
    """Returns the value, and the gradient of its sum by the logits."""
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    value.sum().backward()
    return value.detach().numpy(), logits.grad.numpy()


def main():
    """Writes `peers.npz` and `versions.json` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lovasz", type=Path, required=True, help="the Lovász authors' lovasz_losses.py (PyTorch)")
    lovasz_file = parser.parse_args().lovasz
    spec = importlib.util.spec_from_file_location("lovasz_losses", lovasz_file)
    authors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(authors)

    torch.set_num_threads(1)
    arrays = inputs()
    x = {name: torch.from_numpy(array) for name, array in arrays.items()}
    cases = [*torch_cases(x), *focal_cases(x), *region_cases(x), *smoothing_cases(x), *lovasz_cases(x, authors)]
    for name, logits, loss in cases:
        value, gradient = evaluated(logits, loss)
        arrays |= {name: value, f"{name}/gradient": gradient}
    np.savez_compressed(HERE / "peers.npz", **arrays)

    versions = {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "lovasz": {
            "repository": "github.com/bermanmaxim/LovaszSoftmax",
            "path": "pytorch/lovasz_losses.py",
            "sha256": hashlib.sha256(lovasz_file.read_bytes()).hexdigest(),
        },
    }
    (HERE / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
