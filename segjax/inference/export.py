"""Export of a trained network as one StableHLO file that runs without segjax, and its card."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Shaped

from segjax.data.resize import resize
from segjax.inference import standalone_predict
from segjax.inference.forward import Preprocessing, class_logits, classify
from segjax.storage import to_json, write_together

MODEL_FILE, CARD_FILE, SCRIPT_FILE = "model.stablehlo", "card.json", "run.py"
PLATFORMS = ("cpu", "cuda", "tpu")


def lower_network(
    model: Any,
    variables: Any,
    preprocessing: Preprocessing,
    *,
    variance: bool = False,
    size: tuple[int, int] | None = None,
) -> export.Exported:
    """Lowers the prediction of uint8 images `[b, H, W, channels]`, parameters included, for CPU, CUDA and TPU.

    The program resizes and normalises as evaluation does, and returns a dictionary of "mask" uint8 `[b, H, W]`,
    "probabilities" float32 `[b, H, W, C]`, and with `variance` "variance" float32 `[b, H, W]`: the variance of the
    logits under dropout of the head in closed form, mean over the outputs.

    Args:
      model: the network.
      variables: its parameters and statistics.
      preprocessing: its input and classes.
      variance: return the variance too.
      size: height and width of all images; None: any.
    """
    model = model.clone(dropout="analytic" if variance else "none", remat=False)

    def predict(images: Shaped[Array, "..."]) -> dict[str, jax.Array]:
        output = model.apply(variables, preprocessing.network_input(images), train=False)
        logits = class_logits(resize(output.logits, images.shape[1:3], antialias=False), preprocessing.num_classes)
        found = {
            "mask": classify(logits, preprocessing.num_classes).astype(jnp.uint8),
            "probabilities": jax.nn.softmax(logits),
        }
        if variance:
            mean = output.logit_variance.mean(axis=-1, keepdims=True)
            found["variance"] = resize(mean, images.shape[1:3], antialias=False)[..., 0]
        return found

    shape = export.symbolic_shape("b, h, w") if size is None else (*export.symbolic_shape("b"), *size)
    images = jax.ShapeDtypeStruct((*shape, preprocessing.channels), jnp.uint8)
    return export.export(jax.jit(predict), platforms=PLATFORMS)(images)


def write_export(exported: export.Exported, card: dict[str, Any], folder: Any) -> dict[str, Any]:
    """Writes `model.stablehlo`, `card.json` and `run.py`, all or none: a full disk leaves an earlier export complete.

    Args:
      exported: of `lower_network`.
      card: a description of the network, ready for JSON; it is completed with the hash of the file.
      folder: a path, made if it does not exist.

    Returns:
      The completed card.

    Raises:
      StorageError, OSError: `folder` cannot be written.
    """
    data = bytes(exported.serialize())
    folder.mkdir(parents=True, exist_ok=True)
    card = card | {
        "files": {MODEL_FILE: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}},
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
    }
    script = Path(standalone_predict.__file__).read_bytes()
    write_together({folder / MODEL_FILE: data, folder / SCRIPT_FILE: script, folder / CARD_FILE: to_json(card)})
    return card
