"""The weights and images of `resnets.npz`, by a rule: what PyTorch drew them with is what segjax draws them with."""

import zlib

import numpy as np

IMAGE = (2, 45, 61, 3)
PROJECTIONS = 4


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of that name, float32: a kernel keeps the scale of its input, statistics are like those of training."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.array(1)
    if len(shape) > 1:
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    if name.endswith(("weight", "running_var")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)


def image() -> np.ndarray:
    """`[2, 45, 61, 3]`, an odd size."""
    return np.random.default_rng(0).standard_normal(IMAGE).astype(np.float32)


def projected(feature: np.ndarray) -> np.ndarray:
    """`[B, H, W, C]` to a few mixtures of all its channels, of the same scale: what the file has room for."""
    channels = feature.shape[-1]
    mixtures = np.random.default_rng(channels).standard_normal((channels, PROJECTIONS)) / np.sqrt(channels)
    return feature.astype(np.float64) @ mixtures
