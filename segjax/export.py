"""Exports a network as files that run without segjax, on CPU, CUDA and TPU.

Examples:
  segjax export --checkpoint=runs/debris --output=exported --uncertainty
  segjax export --checkpoint=runs/camvid --output=fixed --size=360,480
  segjax export --checkpoint=runs/boxes --min_score=0.3
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import export as jax_export
from jaxtyping import Array, Float, Shaped

from segjax import cli, metrics, missing_extra
from segjax.data.labels import class_values
from segjax.data.resize import equal_sizes
from segjax.inference import PredictOptions, Preprocessing, class_logits, detect_boxes, standalone_predict
from segjax.inference.predictor import (
    fingerprint,
    mask_and_calibrated_logits,
    prediction_sets,
    present_classes,
)
from segjax.storage import check_outputs, nan_to_none, output_folder, read_json, say, to_json, write_outputs
from segjax.trained_run import (
    TrainedRun,
    find_class,
    guaranteed_mask,
    guaranteed_sets,
    load_run,
    stored_scaling,
)
from segjax.training import ConfigError
from segjax.training.config import leaves
from segjax.training.loop import SCORES_FILE
from segjax.training.provenance import provenance

FLAGS = flags.FLAGS
MODEL_FILE, CARD_FILE, SCRIPT_FILE = "model.stablehlo", "card.json", "run.py"
# Options of masks, which a detector does not have, and those of one class per pixel.
_OF_MASKS = ("uncertainty", "values", "calibrated", "calibration", "guarantee", "class", "sets")
_EXCLUSIVE = ("values", "sets")


def main(argv: list[str]) -> None:
    """Writes model.stablehlo, card.json and run.py."""
    cli.refuse_arguments(argv)
    run = load_run(FLAGS.checkpoint, FLAGS.calibration, detectors=True, multilabel=True)
    if run.config.data.box_classes:
        cli.refuse_flags(_OF_MASKS, f"is for segmentation networks; {run.name} is a detector")
        chosen = {"min_score": FLAGS.min_score}
    else:
        cli.refuse_flags(["min_score"], f"is for detectors; {run.name} is a segmentation network")
        if run.config.data.multilabel:
            cli.refuse_flags(_EXCLUSIVE, f"is for one class per pixel; the classes of {run.name} overlap")
        chosen = _mask_choices(run)
    card = export_run(run, FLAGS.output, size=FLAGS.size, **chosen, overwrite=FLAGS.overwrite)
    images = "images of " + ("x".join(map(str, FLAGS.size)) if FLAGS.size else "any size")
    megabytes = card["files"][MODEL_FILE]["bytes"] / 1e6
    network = f"{run.config.model.name} of " + (f"{len(run.runs)} runs" if run.runs else f"step {run.step}")
    say(f"{network}: {images}; {', '.join(card['platforms'])}")
    say(f"wrote {FLAGS.output}: {MODEL_FILE} ({megabytes:.1f} MB), {CARD_FILE}, {SCRIPT_FILE}")


def _mask_choices(run: TrainedRun) -> dict[str, Any]:
    """Returns the arguments of `export_run` that the flags of masks select, and prints a line about each guarantee."""
    options, guarantees = PredictOptions(run.preprocessing.size), {}
    scaling, scaled = stored_scaling(run, options) if FLAGS.calibrated else (None, "")
    options = dataclasses.replace(options, scaling=scaling)
    if FLAGS.guarantee is not None:
        class_index = find_class(run, FLAGS["class"].value)
        fields, guarantees["guarantee"], line = guaranteed_mask(run, FLAGS.guarantee, class_index)
        options = dataclasses.replace(options, **fields)
        say(line)
    elif FLAGS["class"].value is not None:
        raise app.UsageError(f"--class={FLAGS['class'].value} needs --guarantee: add it, or remove --class")
    if FLAGS.sets is not None:
        fields, guarantees["sets"], line = guaranteed_sets(run, FLAGS.sets)
        options = dataclasses.replace(options, **fields)
        say(line)
    if scaled:
        say(scaled)
    chosen = {"uncertainty": FLAGS.uncertainty, "options": options, "guarantees": guarantees}
    return chosen | {"values": FLAGS["values"].value}


def export_run(
    run: TrainedRun,
    output: Any,
    *,
    uncertainty: bool = False,
    size: tuple[int, int] | None = None,
    options: PredictOptions | None = None,
    guarantees: Mapping[str, Any] | None = None,
    values: str = "index",
    min_score: float = 0.5,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes `model.stablehlo`, `card.json` and `run.py` into the folder `output`, and returns the card.

    All are written or none: a full disk leaves an earlier export complete. `uncertainty`, `size` and `options` are
    those of `lower_network`, and `guarantees` those of the options: "guarantee" of the mask, and "sets". `values` is
    that of `inference.OutputOptions`, for the files of `run.py`; the network itself returns class indices. A detector
    has only `size` and `min_score`, the smallest score of the boxes that `run.py` draws.

    Raises:
      ConfigError: flatbuffers is not installed.
      StorageError or OSError: `output` cannot be written.
      ForeignFileError: without `overwrite`, a file of one of these names is not an earlier export.
    """
    if message := missing_extra("export", "segjax export"):
        raise ConfigError(message)
    folder = output_folder(output)
    check_outputs([folder / name for name in (MODEL_FILE, CARD_FILE, SCRIPT_FILE)], overwrite=overwrite)
    card = model_card(run, uncertainty=uncertainty, size=size)
    if run.config.data.box_classes:
        exported, own = lower_detector(run, size=size), {"min_score": min_score}
    else:
        exported = lower_network(run, uncertainty=uncertainty, size=size, options=options)
        calibration = {"scaling": options.scaling if options else None, "guarantee": None, **(guarantees or {})}
        file_values = class_values(run.label_set).tolist() if values == "dataset" else None
        own = {"file_values": file_values, "calibration": calibration}
        if options and options.set_thresholds is not None:
            card["output"]["sets"] = "bool [b, H, W, C], True for the classes in the set of a pixel, see `calibration`"
    data, script = bytes(exported.serialize()), Path(standalone_predict.__file__).read_bytes()
    card |= own | {
        "files": {MODEL_FILE: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}},
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
    }
    files = {folder / MODEL_FILE: data, folder / SCRIPT_FILE: script, folder / CARD_FILE: to_json(card)}
    write_outputs(files, overwrite=overwrite)
    return card


def lower_network(
    run: TrainedRun,
    *,
    uncertainty: bool = False,
    size: tuple[int, int] | None = None,
    options: PredictOptions | None = None,
) -> jax_export.Exported:
    """Lowers the prediction of images `[b, H, W, channels]`, parameters included, for CPU, CUDA and TPU.

    Images are uint8 or, if the run has a `value_range`, float32 with the values of the image files, which the program
    scales. It resizes and normalises as evaluation does, and returns a dictionary of "mask" uint8 `[b, H, W]`,
    "probabilities" float32 `[b, H, W, C]`, and with `uncertainty` one more, float32 `[b, H, W]`: of an ensemble the
    "mutual_information" of its members, of a network the "variance" of the logits under dropout of the head in closed
    form, mean over the outputs. `size` is the height and width of all images; None: any. Of `options`, the scaling,
    the threshold or radius, and the thresholds of sets are used; these add "sets", bool `[b, H, W, C]`.

    Of classes that overlap the "mask" is bool `[b, H, W, C]`, and the mutual information the sum over the classes.
    """
    options = options or PredictOptions(run.preprocessing.size)
    variables, preprocessing = run.state.variables, run.preprocessing
    analytic = uncertainty and run.members == 1
    model = run.model.clone(dropout="analytic" if analytic else "none", remat=False, axis_name=None)

    def exclusive_classes(logits: Float[Array, "..."]) -> dict[str, jax.Array]:
        mask, calibrated = mask_and_calibrated_logits(logits, options)
        if options.radius:
            near = metrics.dilate(mask == options.positive, options.radius)
            mask = jnp.where(near, jnp.uint8(options.positive), mask)
        found = {"mask": mask, "probabilities": jax.nn.softmax(calibrated)}
        return found | ({} if options.set_thresholds is None else {"sets": prediction_sets(logits, options)})

    def overlapping_classes(log_odds: Float[Array, "..."]) -> dict[str, jax.Array]:
        mask, calibrated = present_classes(log_odds, options)
        if options.radius:
            near = metrics.dilate(mask[..., options.positive], options.radius)
            mask = mask.at[..., options.positive].set(near)
        return {"mask": mask, "probabilities": jax.nn.sigmoid(calibrated)}

    def members_information(outputs: Float[Array, "..."]) -> Float[Array, "..."]:
        if preprocessing.multilabel:
            return metrics.mutual_information(class_logits(outputs[..., None], 2)).sum(axis=-1)
        return metrics.mutual_information(class_logits(outputs, preprocessing.num_classes))

    def predict(images: Shaped[Array, "..."]) -> dict[str, jax.Array]:
        output = model.apply(variables, preprocessing.network_input(images), train=False)
        outputs = preprocessing.to_native(output.logits, images.shape[1:3])
        if preprocessing.multilabel:
            found = overlapping_classes(outputs)
        else:
            found = exclusive_classes(class_logits(outputs, preprocessing.num_classes))
        if uncertainty and run.members > 1:
            name, values = "mutual_information", members_information(output.mc_logits)
        elif uncertainty:
            name, values = "variance", output.logit_variance.mean(axis=-1)
        if uncertainty:
            found[name] = preprocessing.to_native(values[..., None], images.shape[1:3])[..., 0]
        return found

    return _lower(predict, preprocessing, size)


def lower_detector(run: TrainedRun, *, size: tuple[int, int] | None = None) -> jax_export.Exported:
    """Lowers the detection of objects in images `[b, H, W, channels]`, parameters included, for CPU, CUDA and TPU.

    Images and `size` are those of `lower_network`. The program returns a dictionary of "boxes" float32 `[b, D, 4]` in
    pixels of the image, "scores" float32 `[b, D]`, "classes" int32 `[b, D]` and "count" int32 `[b]`. The first `count`
    rows of "boxes", "scores" and "classes" are the detections, by decreasing score; the other rows are 0. The
    detections are those of `TrainedRun.detector`.
    """
    from segjax.training.detection import anchor_options

    model, preprocessing = run.model.clone(remat=False, axis_name=None), run.detector().preprocessing
    variables, anchors = run.state.variables, anchor_options(run.config)

    def predict(images: Shaped[Array, "..."]) -> dict[str, jax.Array]:
        sizes = equal_sizes(images.shape[1:3], images.shape[0])
        boxes, scores, classes, where = detect_boxes(model, variables, images, sizes, preprocessing, anchors)
        return {"boxes": boxes, "scores": scores, "classes": classes, "count": where.sum(axis=-1, dtype=jnp.int32)}

    return _lower(predict, preprocessing, size)


def _lower(predict: Callable, preprocessing: Preprocessing, size: tuple[int, int] | None) -> jax_export.Exported:
    """Lowers `predict(images)` of images of 0..255, or with the values of the image files, which it scales first."""

    def program(images: Shaped[Array, "..."]) -> dict[str, jax.Array]:
        if preprocessing.value_range is not None:
            low, high = preprocessing.value_range
            images = jnp.clip((images - low) * (255 / (high - low)), 0, 255)
        return predict(images)

    shape = jax_export.symbolic_shape("b, h, w") if size is None else (*jax_export.symbolic_shape("b"), *size)
    dtype = jnp.uint8 if preprocessing.value_range is None else jnp.float32
    images = jax.ShapeDtypeStruct((*shape, preprocessing.channels), dtype)
    return jax_export.export(jax.jit(program), platforms=("cpu", "cuda", "tpu"))(images)


def model_card(run: TrainedRun, *, uncertainty: bool, size: tuple[int, int] | None) -> dict[str, Any]:
    """Returns a description of the exported network for users and programs, ready for JSON."""
    config, labels, value_range = run.config, run.label_set, run.preprocessing.value_range
    pixels = "uint8, 0..255"
    if value_range is not None:
        low, high = value_range
        pixels = f"float32, the values of the image files, clipped to {low:g}..{high:g}"
    back, classes = "logits are resized back to H × W", list(labels.names)
    if config.data.box_classes:
        back, classes = "boxes are scaled back to H × W", list(config.data.box_classes)
    colours = labels.palette[[labels.names.index(name) for name in classes]].tolist()
    return {
        "network": {
            "name": config.model.name,
            "members": run.members,
            "parameters": run.state.num_parameters,
            "fingerprint": fingerprint(run.state.variables),
        },
        "classes": [{"name": n, "colour": c} for n, c in zip(classes, colours, strict=True)],
        "classes_overlap": config.data.multilabel,
        "input": {
            "array": f"{pixels}, [b, H, W, channels], any b; three channels are in the order RGB",
            "range": value_range,
            "dtype": run.preprocessing.dtype,
            "channels": run.preprocessing.channels,
            "size": None if size is None else list(size),
        },
        "preprocessing": {
            "applied": "inside: resized to `size` bilinearly with antialiasing, then (image / 255 - mean) / std; "
            f"{back}; with `letterbox`, images keep their proportions and are padded with 0 "
            "at the bottom and the right",
            "size": list(config.data.size),
            "letterbox": config.data.letterbox,
            "mean": list(config.data.mean),
            "std": list(config.data.std),
        },
        "output": _outputs(run, uncertainty),
        "data": {"name": config.data.name, "evaluated_on": config.data.eval_split},
        "checkpoint_step": run.step,
        "runs": run.record().get("runs", []),
        "scores": _scores(run),
        "config": leaves(config),
        "exported_by": provenance(),
        "needs": f"jax {jax.__version__} or a few releases later, and flatbuffers",
    }


def _outputs(run: TrainedRun, uncertainty: bool) -> dict[str, str]:
    """Returns a description of each output of the exported network by its name."""
    if run.config.data.box_classes:
        return {
            "count": "int32 [b], the number of detections of each image; they come first, by decreasing score",
            "boxes": "float32 [b, D, 4], x_min, y_min, x_max, y_max in pixels of the image, from its upper left corner",
            "scores": "float32 [b, D], probabilities",
            "classes": "int32 [b, D], the index of the class",
        }
    output = {
        "mask": "uint8 [b, H, W], the index of the class: the likeliest, or that of `guarantee` by its rule",
        "probabilities": "float32 [b, H, W, C], C the classes in their order, sum 1; after `scaling`, if there is one",
    }
    over_classes = ""
    if run.config.data.multilabel:
        over_classes = ", sum over the classes"
        output = {
            "mask": "bool [b, H, W, C], True for the classes of a pixel: those of a probability above 1/2; that of "
            "`guarantee` by its rule",
            "probabilities": "float32 [b, H, W, C], C the classes in their order, independent of each other; after "
            "`scaling`, if there is one",
        }
    if uncertainty and run.members > 1:
        output["mutual_information"] = (
            f"float32 [b, H, W], nats: mutual information of the class and the {run.members} members of the ensemble"
            f"{over_classes}"
        )
    elif uncertainty:
        output["variance"] = (
            f"float32 [b, H, W], squared logits: variance of the logits under dropout of the head at rate "
            f"{run.config.model.dropout_rate}, in closed form, mean over the outputs; the network was trained with "
            f"dropout={run.config.model.dropout!r}"
        )
    return output


def _scores(run: TrainedRun) -> dict[str, Any] | None:
    """Returns the scores of this checkpoint: by `segjax.evaluate`, or of the run's end if it is the last; else None."""
    if run.runs:  # their ensemble has no workdir
        return None
    # An earlier training in this folder may have left scores of the same step.
    ours = {"parameters": fingerprint(run.state.variables)}, {"steps": run.step}
    for name, same in zip((f"scores_{run.config.data.eval_split}_{run.step}.json", SCORES_FILE), ours, strict=True):
        file = run.workdir / name
        scores = read_json(file, dict, "the scores of an evaluation") if file.exists() else {}
        if same.items() <= scores.items():
            return {"file": name, "of_step": run.step} | nan_to_none(scores)
    return None


if __name__ == "__main__":
    cli.define_checkpoint()
    flags.DEFINE_string("output", "exported", "Folder for model.stablehlo, card.json and run.py.")
    cli.define_size("size", "Export for images of this size only; default: any size.")
    flags.DEFINE_bool(
        "uncertainty",
        False,
        "Also export an uncertainty: the dropout variance of the logits or, for an ensemble, the mutual information.",
    )
    help_text = "Pixels of the masks that run.py writes: class indices, or the ids or colours in the data set's masks."
    flags.DEFINE_enum("values", "index", ["index", "dataset"], help_text)
    cli.define_calibrated()
    cli.define_calibration()
    cli.define_guarantee("guarantee", "Export the mask of segjax calibrate --risk=fnr; =LEVEL selects one.")
    flags.DEFINE_string("class", None, "Class of the guarantee, where several are stored.")
    cli.define_guarantee("sets", "Export the sets of segjax calibrate --risk=miscoverage; =LEVEL selects one.")
    cli.define_min_score()
    cli.define_overwrite()
    cli.run(main, required=["checkpoint"])
