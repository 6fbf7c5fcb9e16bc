"""Pictures of a prediction."""

import numpy as np
from jaxtyping import Shaped, UInt8


def overlay(
    image: UInt8[np.ndarray, "H W C"], colours: UInt8[np.ndarray, "H W 3"], *, opacity: float = 0.5
) -> UInt8[np.ndarray, "H W 3"]:
    """`image` with `colours` laid over it: (1 - opacity) · image + opacity · colours, rounded.

    Args:
      image: uint8 `[H, W, C]`, C = 3 (RGB) or 1 (grey).
      colours: uint8 `[H, W, 3]`, such as a colourised mask; black leaves the image as it is.
      opacity: in [0, 1].

    Raises:
      ValueError: `opacity` outside [0, 1].

    >>> overlay(np.full((1, 1, 1), 100, np.uint8), np.array([[[200, 0, 0]]], np.uint8))
    array([[[150,  50,  50]]], dtype=uint8)
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in [0, 1]; got {opacity!r}")
    grey_or_rgb: Shaped[np.ndarray, "H W 3"] = np.broadcast_to(image, colours.shape).astype(np.float32)
    painted = colours.any(axis=-1, keepdims=True)
    mixed = np.where(painted, (1 - opacity) * grey_or_rgb + opacity * colours, grey_or_rgb)
    return np.round(mixed).astype(np.uint8)
