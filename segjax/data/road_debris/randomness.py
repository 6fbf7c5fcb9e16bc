"""Random numbers and value noise that are the same on every machine and under every NumPy version.

NumPy guarantees the bits of a bit generator, not what `Generator` makes of them, so only `Philox.random_raw` is used.
"""

import numpy as np
from jaxtyping import Float

_TABLE_BITS = 8  # the noise lattice repeats after 256 cells


class Stream:
    """The random numbers of one purpose of one scene: Philox keyed by (seed, index), its counter by the purpose.

    A purpose of its own for each part of the scene keeps the other parts unchanged when one part draws more numbers.
    """

    def __init__(self, seed: int, index: int, purpose: int):
        key = np.array([seed, index], np.uint64)
        counter = np.array([0, 0, 0, purpose], np.uint64)
        self._bits = np.random.Philox(key=key, counter=counter)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in [low, high)."""
        return low + (high - low) * (self._bits.random_raw() >> 11) * 2.0**-53

    def uniforms(self, low: float, high: float, count: int) -> Float[np.ndarray, "count"]:
        """As many floats in [low, high)."""
        return low + (high - low) * ((self._bits.random_raw(count) >> np.uint64(11)) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + int(self.uniform() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def sign(self) -> float:
        """-1.0 or 1.0."""
        return 1.0 if self.chance(0.5) else -1.0

    def colour(self, spread: float) -> Float[np.ndarray, "3"]:
        """Three factors, each in [1 - spread, 1 + spread)."""
        return self.uniforms(1.0 - spread, 1.0 + spread, 3)

    def table(self) -> Float[np.ndarray, "65536"]:
        """The lattice of `value_noise`: uniform on [-1, 1], steps of 2^-15."""
        words = self._bits.random_raw(1 << (2 * _TABLE_BITS - 2))
        return _halves(words).reshape(-1) * 2.0**-15 - 1.0

    def gaussian(self, count: int) -> Float[np.ndarray, "count"]:
        """Zero mean, unit variance: the sum of four 16-bit uniforms (Irwin-Hall), which needs integer sums only."""
        quarters = _halves(self._bits.random_raw(count))
        return (quarters.sum(axis=0) - 4 * 32767.5) * (np.sqrt(3.0) / 65536.0)


def value_noise(
    table: Float[np.ndarray, "65536"], x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Smooth noise in [-1, 1] at the points (x, y), one random value for each unit cell's corner.

    Continuous in x and y, so that a last-bit difference in a coordinate stays a last-bit difference in the noise.
    """
    mask = (1 << _TABLE_BITS) - 1
    left, top = np.floor(x), np.floor(y)
    across, down = x - left, y - top
    across *= across * (3.0 - 2.0 * across)
    down *= down * (3.0 - 2.0 * down)
    column, row = left.astype(np.int64), top.astype(np.int64)
    columns = column & mask, (column + 1) & mask
    rows = (row & mask) << _TABLE_BITS, ((row + 1) & mask) << _TABLE_BITS
    corners = [[table.take(r + c) for c in columns] for r in rows]
    above, below = (first + (second - first) * across for first, second in corners)
    return above + (below - above) * down


def _halves(words):
    """The four 16-bit parts of each 64-bit word, as float64 [4, n], in an order that no byte order can change."""
    return np.stack([(words >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]).astype(np.float64)
