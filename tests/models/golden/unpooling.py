"""Max pooling with positions, and max unpooling, by PyTorch: `unpooling.npz`, read by `test_upsampling.py`.

    python tests/models/golden/unpooling.py

needs PyTorch, which segjax does not depend on; last used: torch 2.14.1, NumPy 2.4.6.
"""

from pathlib import Path

import numpy as np


def main() -> None:
    """Writes the inputs and PyTorch's results, NHWC, beside this file."""
    import torch
    from torch.nn import functional

    rng = np.random.default_rng(1511)
    # Few different values and many zeros, so that windows have ties, as after a ReLU.
    x = np.maximum(rng.integers(-3, 4, (2, 8, 10, 3)), 0).astype(np.float32)
    values = rng.standard_normal((2, 4, 5, 3)).astype(np.float32)
    nchw = [torch.from_numpy(a).permute(0, 3, 1, 2) for a in (x, values)]
    pooled, indices = functional.max_pool2d(nchw[0], 2, return_indices=True)
    unpooled = functional.max_unpool2d(nchw[1], indices, 2)
    made = {"pooled": pooled, "indices": indices, "unpooled": unpooled}
    made = {name: a.permute(0, 2, 3, 1).numpy() for name, a in made.items()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), x=x, values=values, **made)


if __name__ == "__main__":
    main()
