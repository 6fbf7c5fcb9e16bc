"""The U-Net paper's border weights: background between two instances that lie close together counts more.

Host code, for data sets that number their instances. What needs no more than class labels is
`segjax.losses.boundary_weights`, on the device.
"""

import math

import numpy as np
from jaxtyping import Float32, Integer
from scipy import ndimage


def border_weights(
    instances: Integer[np.ndarray, "height width"], *, w0: float | int = 10.0, sigma: float | int = 5.0
) -> Float32[np.ndarray, "height width"]:
    r"""The distance term of the U-Net paper's pixel weights (its equation 2).

    .. math::
        w(x) = w_0 \exp\left(-\frac{(d_1(x) + d_2(x))^2}{2σ^2}\right)

    with d₁ and d₂ the Euclidean distances of a background pixel to the nearest and second nearest instance, in pixels,
    between pixel centres: a pixel that touches an instance is 1 away. The paper's whole weight is the class weight plus
    this: `1 + border_weights(instances)`, or `class_weights[labels] + border_weights(instances)`, in NumPy.

    Instances themselves get 0. The paper means the gaps between cells, and the usual ports (the MATLAB and NumPy ones,
    HoVer-Net's) multiply by the background too: on an instance d₁ is 0 whatever the gap. Instances that touch
    leave no gap to weigh; the paper opens one first, by morphology.

    Args:
        instances: an instance map, 0 the background, every other value one instance (in one piece or more). A void
            region with a number of its own would be an instance: set it to 0, and leave it out by the losses' `where`.
        w0: w₀ ≥ 0, the weight at a gap of no width.
        sigma: σ > 0 in pixels: the weight is down to 0.6 w₀ where d₁ + d₂ = σ, to 0.01 w₀ at 3σ.

    Returns:
        float32 `[H, W]`; all 0 where there are fewer than two instances.

    Raises:
        TypeError: instances are not integers.
        ValueError: instances of another rank, w₀ negative or not finite, or σ not positive and finite.

    References:
        Ronneberger et al., U-Net, arXiv 1505.04597, section 3.

    >>> print(border_weights(np.array([[1, 0, 0, 2, 2, 0, 0, 0]])).round(2))
    [[0.   8.35 8.35 0.   0.   4.87 2.78 1.35]]
    """
    instances = np.asarray(instances)
    _check(instances, w0, sigma)
    ids, numbers = np.unique(instances, return_inverse=True)
    numbers = numbers.reshape(instances.shape)
    # d1 + d2 ≥ d2: further than this from an instance its distance gives a weight that float32 rounds to 0.
    reach = math.ceil(sigma * math.sqrt(2 * (104 + math.log(max(w0, 1)))))
    nearest = np.full(instances.shape, np.inf)
    second = np.full(instances.shape, np.inf)
    # One instance at a time, in a window around it: a stack of n distance maps would take gigabytes.
    for number, box in enumerate(ndimage.find_objects(numbers + 1)):
        if ids[number] == 0:
            continue
        window = tuple(slice(max(side.start - reach, 0), side.stop + reach) for side in box)
        distance = ndimage.distance_transform_edt(numbers[window] != number)
        second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
        nearest[window] = np.minimum(nearest[window], distance)
    weights = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(instances == 0, weights, 0).astype(np.float32)


def _check(instances: np.ndarray, w0: float | int, sigma: float | int) -> None:
    if not np.issubdtype(instances.dtype, np.integer):
        hint = ". A mask has no instances: number its parts, as scipy.ndimage.label does"
        raise TypeError(
            f"instances must be integers; got {instances.dtype} of shape {instances.shape}"
            f"{hint if instances.dtype == bool else ''}"
        )
    if instances.ndim != 2:
        raise ValueError(f"instances must be [height, width]; got shape {instances.shape}")
    if not 0 <= w0 < math.inf:
        raise ValueError(f"w0 must be at least 0 and finite; got {w0}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite; got {sigma}")
