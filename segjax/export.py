"""Exports a network: `python -m segjax.export --checkpoint=runs/camvid --output=exported`, to run without segjax."""

from absl import app, flags

from segjax import cli
from segjax.training import export_run, load_run


def main(argv: list[str]) -> None:
    """Writes model.stablehlo, card.json and run.py."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    run, output, size = load_run(flags.FLAGS.checkpoint), flags.FLAGS.output, flags.FLAGS.size
    card = export_run(run, output, uncertainty=flags.FLAGS.uncertainty, size=size)
    taken = "x".join(map(str, size)) if size else f"any size, padded to multiples of {card['input']['multiple']}"
    megabytes = card["files"]["model.stablehlo"]["bytes"] / 1e6
    print(f"{card['network']['name']} of step {card['checkpoint_step']}: {taken}; {', '.join(card['platforms'])}")
    print(f"wrote {output}: model.stablehlo ({megabytes:.1f} MB), card.json, run.py")


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A run's workdir (its best) or WORKDIR/checkpoints/STEP.")
    flags.DEFINE_string("output", "exported", "The folder for model.stablehlo, card.json and run.py.")
    cli.define_size("size", "For images of this size only; default: any size.")
    flags.DEFINE_bool("uncertainty", False, "Export the variance of the logits under dropout too.")
    cli.run(main, required=["checkpoint"])
