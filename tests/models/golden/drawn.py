"""Weights and images of `resnets.npz` and `retinanet.npz`, drawn in the same way for PyTorch and for segjax."""

import zlib

import numpy as np

IMAGE = (2, 45, 61, 3)
PROJECTIONS = 4


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws the float32 array of this name: kernels keep the scale of their input, statistics are like trained ones."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.array(1)
    if len(shape) > 1:
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    if name.endswith(("weight", "running_var")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)


def image(shape: tuple[int, ...] = IMAGE) -> np.ndarray:
    """Draws images, by default `[2, 45, 61, 3]`, of odd size."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def projected(feature: np.ndarray) -> np.ndarray:
    """Maps `[B, H, W, C]` to four random mixtures of its channels, of the same scale, to keep the file small."""
    channels = feature.shape[-1]
    mixtures = np.random.default_rng(channels).standard_normal((channels, PROJECTIONS)) / np.sqrt(channels)
    return feature.astype(np.float64) @ mixtures
