"""Calibrates the probabilities of a trained run, and chooses thresholds with a guarantee.

Examples:
  segjax calibrate --checkpoint=runs/camvid --scaling=vector
  segjax calibrate --checkpoint=runs/debris --risk=fnr --level=0.05 --class=debris
"""

import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import app, flags
from jaxtyping import Array, Bool, Float, Int

from segjax import cli, metrics
from segjax.data import Source, open_split
from segjax.reporting import calibration_tables, show
from segjax.storage import StorageError, check_outputs, say, to_json, write_outputs
from segjax.trained_run import (
    CALIBRATION_FILE,
    TrainedRun,
    calibration_of,
    class_index,
    image_counts,
    load_run,
    positive_class,
)
from segjax.training import ConfigError
from segjax.training.provenance import provenance

FLAGS = flags.FLAGS
SCALINGS = ("temperature", "class", "vector", "none")
# Pixels that a scaling is fitted to and judged by, drawn from all images. A scaling has 2C parameters at most.
_PIXELS = 2**17


def main(argv: list[str]) -> None:
    """Applies the network to every image of the split once, and writes the scaling and the threshold with the run."""
    cli.refuse_arguments(argv)
    console, run = rich.console.Console(), load_run(FLAGS.checkpoint)
    if run.runs:
        raise ConfigError(f"--checkpoint={run.name}: a calibration is stored in one WORKDIR; calibrate a single run")
    split, kind = FLAGS.split or run.config.data.eval_split, FLAGS.scaling
    number = _class_of_risk(run)
    if kind == "none" and FLAGS.risk is None:
        raise app.UsageError("--scaling=none needs --risk, or there is nothing to calibrate")
    file = run.workdir / CALIBRATION_FILE
    try:
        stored, reason = calibration_of(run)
    except StorageError:
        if not FLAGS.overwrite:
            raise
        stored, reason = None, ""
    if reason and not FLAGS.overwrite:
        raise ConfigError(f"{reason}; add --overwrite to replace it")
    check_outputs([file], overwrite=FLAGS.overwrite)
    source = open_split(run.config.data, split)
    refuse_training_images(run, split, source)
    found = calibrate(run, source, kind=kind, risk=FLAGS.risk, level=FLAGS.level, number=number)
    calibration = merge(stored, {"split": split, **found}) | {
        "step": run.step,
        "predictor": run.predictor().record(),
        "provenance": provenance(),
    }
    write_outputs({file: to_json(calibration)}, overwrite=FLAGS.overwrite)
    for table in calibration_tables(calibration):
        show(table, console)
    say(f"wrote {file}; segjax predict and segjax export use it", console)


def _class_of_risk(run: TrainedRun) -> int | None:
    """Returns the class of `--risk=fnr`; None for another risk, or without one."""
    name = FLAGS["class"].value
    if FLAGS.risk is None:
        for flag, value in (("level", FLAGS.level), ("class", name)):
            if value is not None:
                raise app.UsageError(f"--{flag}={value} needs --risk")
        return None
    if FLAGS.level is None:
        raise app.UsageError(f"--risk={FLAGS.risk} needs --level, such as --level=0.05")
    if FLAGS.risk == "miscoverage":
        if name is not None:
            raise app.UsageError(f"--risk=miscoverage is of all classes; remove --class={name}")
        return None
    return positive_class(run, class_index(run, name), f"--risk={FLAGS.risk}")


def refuse_training_images(run: TrainedRun, split: str, source: Source) -> None:
    """Raises ConfigError if `split` contains images that the run was trained on."""
    training = run.config.data.train_split
    first, second = (
        set(re.findall(r"[A-Za-z_]\w*", re.sub(r"\bval\b", "validation", one))) for one in (split, training)
    )
    if not first & second:  # names are unique within a split only
        return
    trained = open_split(run.config.data, training)
    names = {trained.name(i) for i in range(len(trained))}
    shared = sum(source.name(i) in names for i in range(len(source)))
    if shared:
        raise ConfigError(
            f"--split={split}: the run was trained on {shared} of its {len(source)} images, and a network is too "
            f"confident on these; choose other images, such as --split={run.config.data.eval_split}"
        )


def calibrate(
    run: TrainedRun,
    source: Source,
    *,
    kind: str = "temperature",
    risk: str | None = None,
    level: float | None = None,
    number: int | None = None,
) -> dict[str, Any]:
    """Returns the calibration of a run on a split, ready for JSON, from one pass over its images.

    Args:
      run: the run.
      source: images that the run was not trained on.
      kind: that of `metrics.fit_scaling`, or "none".
      risk: share of an image's pixels, "fnr": of those of a class, that a threshold misses, or "miscoverage": of all,
        whose set of classes lacks their own; None: no guarantee.
      level: bound of the expected risk.
      number: index of the class of "fnr".

    Returns:
      "images" and "data", the digest; "scaling", with the scores before and after, or None; "guarantee", or None.

    Raises: ConfigError if the network or the images do not determine the scaling, or do not allow the level.
    """
    if kind in ("class", "vector") and run.num_outputs == 1:
        raise ConfigError(
            f"--scaling={kind}: the network has one output, the log odds of {run.label_set.names[1]}, and one factor "
            "scales it; use --scaling=temperature"
        )
    share = 0.0 if kind == "none" else min(1.0, _PIXELS / sum(height * width for height, width in source.sizes))
    counts = image_counts(run, source, partial(_count_image, share=share, risk=risk, number=number))
    found: dict[str, Any] = {"images": len(source), "data": source.digest, "scaling": None, "guarantee": None}
    if kind != "none":
        strips = [strip for one in counts for strip in zip(*one["sample"], strict=True)]
        where = np.concatenate([keep for _, _, keep in strips])
        logits, labels = (np.concatenate([strip[i] for strip in strips])[where] for i in (0, 1))
        found["scaling"] = fit(logits.astype(np.float32), labels, kind)
    if risk:
        histograms = np.stack([one["histogram"].sum(axis=0) for one in counts])
        found["guarantee"] = guarantee(histograms, level, "" if number is None else run.label_set.names[number])
    return found


def _count_image(
    logits: Float[Array, "rows W C"],
    labels: Int[Array, "rows W"],
    where: Bool[Array, "rows W"],
    index: Int[Array, ""],
    *,
    share: float,
    risk: str | None,
    number: int | None,
) -> dict[str, Any]:
    """Returns a sample of a `share` of the pixels, and a histogram for the risk."""
    counts = {}
    if share:
        pixels, size = jnp.arange(labels.size), math.ceil(share * labels.size)
        if share < 1:
            pixels = jax.random.randint(jax.random.fold_in(jax.random.key(0), index), (size,), 0, labels.size)
        flat = (logits.reshape(-1, logits.shape[-1]), labels.ravel(), where.ravel())
        counts["sample"] = tuple(values[pixels] for values in flat)
    odds = metrics.class_log_odds(logits)
    if risk == "fnr":
        counts["histogram"] = metrics.score_histogram(odds[..., number], labels == number, where=where)
    elif risk == "miscoverage":
        own = jnp.arange(logits.shape[-1]) == labels[..., None]
        counts["histogram"] = metrics.score_histogram(odds, own, where=where[..., None])
    return counts


def fit(logits: Float[np.ndarray, "pixels C"], labels: Int[np.ndarray, "pixels"], kind: str) -> dict[str, Any]:
    """Returns the scaling of `metrics.fit_scaling`, and the calibration of the pixels before and after it."""
    try:
        scaling = metrics.fit_scaling(logits, labels, kind=kind)
    except ValueError as error:
        raise ConfigError(f"--scaling={kind}: {error}") from error
    return {
        "kind": kind,
        "scale": np.asarray(scaling.scale).tolist(),
        "bias": np.asarray(scaling.bias).tolist(),
        "pixels": len(labels),
        "before": calibration_scores(jnp.asarray(logits), labels),
        "after": calibration_scores(metrics.scale_logits(logits, scaling), labels),
    }


def calibration_scores(logits: Float[Array, "*pixels C"], labels: Int[np.ndarray, "*pixels"]) -> dict[str, float]:
    """Returns the mean negative log-likelihood and the calibration errors of bins of equal width and of equal mass."""
    bins, sums, histogram = _calibration_counts(logits, labels)
    return {
        "negative_log_likelihood": metrics.negative_log_likelihood(sums),
        "expected_calibration_error": metrics.expected_calibration_error(bins),
        "adaptive_calibration_error": metrics.adaptive_calibration_error(histogram),
    }


@jax.jit
def _calibration_counts(logits: Float[Array, "*pixels C"], labels: Int[Array, "*pixels"]) -> tuple[Any, ...]:
    odds, correct = jnp.max(metrics.class_log_odds(logits), axis=-1), jnp.argmax(logits, axis=-1) == labels
    counts = (metrics.calibration_bins(logits, labels), metrics.proper_score_sums(logits, labels))
    return *counts, metrics.score_histogram(odds, correct)


def guarantee(histograms: Int[np.ndarray, "images 2 bins"], level: float, name: str) -> dict[str, Any]:
    """Returns the threshold by conformal risk control for the missed share of a class, and what it costs.

    `histograms` are the `metrics.score_histogram` of the class `name`, one per image, or with the name "" those of all
    classes, whose positives are each pixel's own: sets of the classes that reach the threshold miss the same share.
    """
    rates, thresholds = metrics.false_negative_rates(histograms)
    if not len(rates):
        raise ConfigError(f"--class={name}: no image of the split has a pixel of it; choose a --split that has some")
    # The first threshold marks every pixel.
    rates, thresholds = rates[:, 1:], thresholds[1:]
    smallest = float(rates[:, 0].sum() + 1) / (len(rates) + 1)
    if level < smallest * (1 - 1e-12):
        images = f"{len(rates)} image(s)" + f" with {name}" * bool(name)
        raise ConfigError(
            f"--level={level:g}: {images} allow a level of {np.ceil(smallest * 1e4) / 1e4:g} or more; raise --level, "
            "or calibrate on more images"
        )
    at = metrics.risk_control(rates, level)
    threshold, (negatives, positives) = float(thresholds[at]), histograms.sum(axis=0)
    marked = negatives[at + 1 :].sum()
    size = {} if name else {"mean_size": float((marked + positives[at + 1 :].sum()) / positives.sum())}
    return {
        "risk": "fnr" if name else "miscoverage",
        "level": level,
        "class": name,
        "threshold": threshold,
        "probability": 1 / (1 + math.exp(-threshold)),
        "images_with_class": len(rates),
        "miss_rate": float(rates[:, at].mean()),
        "false_positive_rate": float(marked / max(negatives.sum(), 1)),
        "smallest_level": smallest,
        **size,
    }


def merge(stored: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """Returns "scaling" and "guarantees" of a checkpoint's stored calibration, with those of `calibrate` and a split.

    A new scaling replaces the stored one, and a new guarantee that of the same class, risk and level.
    """
    origin = {key: found[key] for key in ("split", "images", "data")}
    scaling, guarantees = (stored["scaling"], stored["guarantees"]) if stored else (None, [])
    if found["scaling"]:
        scaling = found["scaling"] | origin
    if new := found["guarantee"]:
        same = ("risk", "level", "class")
        guarantees = [one for one in guarantees if any(one[key] != new[key] for key in same)] + [new | origin]
    return {"scaling": scaling, "guarantees": guarantees}


if __name__ == "__main__":
    cli.define_checkpoint()
    flags.DEFINE_string(
        "split", None, "Images to calibrate on, not those of training, such as 'val[:50%]'; default: data.eval_split."
    )
    flags.DEFINE_enum(
        "scaling", SCALINGS[0], SCALINGS, "Scaling of the logits: one factor, one per class, or these and biases."
    )
    flags.DEFINE_enum(
        "risk",
        None,
        ["fnr", "miscoverage"],
        "Bound the share of an image's pixels of --class that is missed, or of all pixels whose set lacks their class.",
    )
    cli.define_number("level", float, "(0, 1)", "Bound of the risk on a new image, in expectation.")
    flags.DEFINE_string("class", None, "Class of the risk; default: the second of two.")
    cli.define_overwrite()
    cli.run(main, required=["checkpoint"])
