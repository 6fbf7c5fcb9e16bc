"""A trained network as one file that jax runs without segjax, and the card that says what it is and what it takes."""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax import export

from segjax.training import run_artifact
from segjax.training.config import ConfigError, leaves
from segjax.training.loop import SCORES_FILE
from segjax.training.prediction import make_native
from segjax.training.provenance import provenance
from segjax.training.run import Run, no_nan, read_json
from segjax.training.storage import output_folder, write_together

MODEL_FILE, CARD_FILE, SCRIPT_FILE = "model.stablehlo", "card.json", "run.py"
PLATFORMS = ("cpu", "cuda", "tpu")

# What JAX raises of a size that is no number yet.
_SYMBOLIC = (jax.errors.InconclusiveDimensionOperation, jax.errors.ConcretizationTypeError, TypeError, ValueError)


def export_run(run: Run, output: Any, *, uncertainty: bool = False, size: tuple[int, int] | None = None) -> dict:
    """Writes `model.stablehlo`, `card.json` and `run.py`, all or none: without room an earlier export stays whole.

    The artifact is `jax.export`'s, for the CPU, CUDA and TPUs at once: uint8 images `[b, H, W, channels]` to a
    dictionary of "probabilities", float32 `[b, H, W, C]`, and with `uncertainty` of "variance", float32 `[b, H, W]`,
    the head's dropout in closed form. Normalisation is inside, resizing and padding are the caller's.

    Args:
      run: the checkpoint.
      output: the folder, made if it is not there.
      uncertainty: export the variance too.
      size: height and width of all images; None: any multiples of the network's own, each image padded to them by
        its caller.

    Returns:
      The card.

    Raises:
      ConfigError: flatbuffers is not installed; the network cannot be exported for sizes that are not known.
      StorageError, OSError: `output` cannot be written.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError(
            "export writes with flatbuffers, which is not installed: pip install --constraint constraints.txt "
            "'.[train,export]'"
        )
    folder = output_folder(output)
    exported = lower(run, uncertainty=uncertainty, size=size)
    data = bytes(exported.serialize())
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(data).hexdigest()
    card = model_card(run, uncertainty=uncertainty, size=size) | {
        "files": {MODEL_FILE: {"sha256": digest, "bytes": len(data)}},
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
    }
    script, text = Path(run_artifact.__file__).read_bytes(), json.dumps(card, indent=1) + "\n"
    write_together({folder / MODEL_FILE: data, folder / SCRIPT_FILE: script, folder / CARD_FILE: text.encode()})
    return card


def lower(run: Run, *, uncertainty: bool, size: tuple[int, int] | None) -> export.Exported:
    """The program of `export_run`, its parameters inside, not yet serialised."""
    native = make_native(run.config, run.model, len(run.label_set.names), variance=uncertainty)
    variables, model, name = run.state.variables, run.model, run.config.model.name
    if size is None:
        n, least = model.multiple, model.symbolic_minimum
        constraints = [f"{n}*h >= {least}", f"{n}*w >= {least}"]
        shape = export.symbolic_shape(f"b, {n}*h, {n}*w", constraints=constraints)
    else:
        shape = (*export.symbolic_shape("b"), *size)
    images = jax.ShapeDtypeStruct((*shape, run.config.data.channels), jnp.uint8)
    try:
        return export.export(jax.jit(lambda x: native(variables, x)), platforms=PLATFORMS)(images)
    except _SYMBOLIC as error:
        if size is not None:
            raise
        said = str(error).splitlines()[0]
        raise ConfigError(
            f"config.model.name = {name!r} cannot be exported for images of any size; export it for one, "
            f"--size=HEIGHT,WIDTH ({type(error).__name__}: {said})"
        ) from error


def model_card(run: Run, *, uncertainty: bool, size: tuple[int, int] | None) -> dict[str, Any]:
    """What a person or a program has to know of an exported network to use it and to judge it; ready for JSON."""
    config, model, labels = run.config, run.model, run.label_set
    output = {"probabilities": "float32 [b, H, W, C], C the classes in their order, sum 1"}
    if uncertainty:
        output["variance"] = (
            "float32 [b, H, W], squared logits: of the logits under dropout of the head at rate "
            f"{config.model.dropout_rate}, in closed form, mean over the outputs; the network was trained with "
            f"dropout={config.model.dropout!r}"
        )
    return {
        "network": {"name": config.model.name, "parameters": sum(p.size for p in jax.tree.leaves(run.state.params))},
        "classes": [
            {"name": name, "colour": [int(c) for c in colour]}
            for name, colour in zip(labels.names, labels.palette, strict=True)
        ],
        "input": {
            "array": "uint8 [b, H, W, channels], any b; pixels 0..255, channels in the order RGB",
            "channels": config.data.channels,
            "size": None if size is None else list(size),
            "multiple": 1 if size else model.multiple,
            "minimum": 1 if size else model.symbolic_minimum,
            "padding": "height and width are multiples of `multiple`, at least `minimum`: pad at the bottom and the "
            "right by reflection (numpy.pad, mode='reflect') and crop the output; run.py does it",
            "trained_size": list(config.data.size),
            "scale": "the network was trained on images resized to `trained_size`: resize to it, or to that scale",
        },
        "normalisation": {
            "applied": "inside: (image / 255 - mean) / std",
            "mean": list(config.data.mean),
            "std": list(config.data.std),
        },
        "output": output,
        "data": {"name": config.data.name, "evaluated_on": config.data.eval_split},
        "checkpoint_step": int(run.state.step),
        "scores": _scores(run),
        "config": leaves(config),
        "exported_by": provenance(),
        "needs": f"jax of {jax.__version__} or a little later, and flatbuffers",
    }


def _scores(run: Run) -> dict[str, Any] | None:
    """Those of this checkpoint if `segjax.evaluate` wrote them, else those the run ended with; None: there are none."""
    split, step = run.config.data.eval_split, int(run.state.step)
    for name in (f"scores_{split}_{step}.json", SCORES_FILE):
        file: epath.Path = run.workdir / name
        if file.exists():
            scores = read_json(file)
            # JSON has no NaN, which a class that never occurs has; Python alone would read it.
            return {"file": name, "of_step": scores.get("step", scores.get("steps"))} | no_nan(scores)
    return None
