"""Exports a network: `python -m segjax.export --checkpoint=runs/camvid --output=exported`, to run without segjax."""

import importlib.util
from typing import Any

import jax
from absl import app, flags

from segjax import cli, inference
from segjax.storage import nan_to_none, output_folder, read_json
from segjax.trained_run import TrainedRun, load_run
from segjax.training import ConfigError
from segjax.training.config import leaves
from segjax.training.loop import SCORES_FILE
from segjax.training.provenance import provenance


def main(argv: list[str]) -> None:
    """Writes model.stablehlo, card.json and run.py."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    run, output, size = load_run(flags.FLAGS.checkpoint), flags.FLAGS.output, flags.FLAGS.size
    card = export_run(run, output, variance=flags.FLAGS.uncertainty, size=size)
    images = "images of " + ("x".join(map(str, size)) if size else "any size")
    megabytes = card["files"]["model.stablehlo"]["bytes"] / 1e6
    print(f"{card['network']['name']} of step {card['checkpoint_step']}: {images}; {', '.join(card['platforms'])}")
    print(f"wrote {output}: model.stablehlo ({megabytes:.1f} MB), card.json, run.py")


def export_run(
    run: TrainedRun, output: Any, *, variance: bool = False, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Writes a run's network and its card (`segjax.inference.write_export`), and returns the card.

    Args:
      run: the checkpoint.
      output: the folder, made if it does not exist.
      variance: export the variance of the logits under dropout of the head too.
      size: height and width of all images; None: any.

    Raises:
      ConfigError: flatbuffers is not installed.
      StorageError, OSError: `output` cannot be written.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError(
            "segjax.export needs flatbuffers, which is not installed: pip install --constraint constraints.txt "
            "'.[train,export]'"
        )
    folder = output_folder(output)
    model = run.model.clone(axis_name=None)
    exported = inference.lower_network(model, run.state.variables, run.preprocessing, variance=variance, size=size)
    return inference.write_export(exported, model_card(run, variance=variance, size=size), folder)


def model_card(run: TrainedRun, *, variance: bool, size: tuple[int, int] | None) -> dict[str, Any]:
    """Returns a description of the exported network for users and programs, ready for JSON."""
    config, labels = run.config, run.label_set
    output = {
        "mask": "uint8 [b, H, W], the index of the class",
        "probabilities": "float32 [b, H, W, C], C the classes in their order, sum 1",
    }
    if variance:
        output["variance"] = (
            f"float32 [b, H, W], squared logits: variance of the logits under dropout of the head at rate "
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
        },
        "preprocessing": {
            "applied": "inside: resized to `size` bilinearly with antialiasing, then (image / 255 - mean) / std; "
            "logits are resized back to H × W",
            "size": list(config.data.size),
            "mean": list(config.data.mean),
            "std": list(config.data.std),
        },
        "output": output,
        "data": {"name": config.data.name, "evaluated_on": config.data.eval_split},
        "checkpoint_step": int(run.state.step),
        "scores": _scores(run),
        "config": leaves(config),
        "exported_by": provenance(),
        "needs": f"jax {jax.__version__} or a few releases later, and flatbuffers",
    }


def _scores(run: TrainedRun) -> dict[str, Any] | None:
    """Returns the scores that `segjax.evaluate` wrote of this checkpoint, or those of the run's end; None: neither."""
    split, step = run.config.data.eval_split, int(run.state.step)
    for name in (f"scores_{split}_{step}.json", SCORES_FILE):
        file = run.workdir / name
        if file.exists():
            scores = read_json(file)
            return {"file": name, "of_step": scores.get("step", scores.get("steps"))} | nan_to_none(scores)
    return None


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "Workdir of a run (its best checkpoint) or WORKDIR/checkpoints/STEP.")
    flags.DEFINE_string("output", "exported", "Folder for model.stablehlo, card.json and run.py.")
    cli.define_size("size", "Export for images of this size only; default: any size.")
    flags.DEFINE_bool("uncertainty", False, "Export the variance of the logits under dropout too.")
    cli.run(main, required=["checkpoint"])
