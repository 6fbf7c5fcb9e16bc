"""Training step of a U-Net and its convolutions, in comparison with PyTorch with the same weights and batch.

The step has forward and backward pass, batch norm in training mode, cross entropy and Adam, in float32, with zero
padding. PyTorch runs it eagerly, in its default layout and in channels last. Before timing, the loss of the first step
and the gradients of the first and the last kernel are compared. A row of a convolution is the 3×3 convolution of a
level with both gradients, which take most of a step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.baselines import OURS, Candidate, Setting, Target, measure, quotient, torch_here
from segjax import losses
from segjax.models import UNet

TITLE = "Network: a training step, and its convolutions"
STEP = "U-Net step"
LAST = "PyTorch, channels last"
COLUMNS = ("PyTorch", LAST)
WIDTHS = (16,)
CLASSES, DEPTH, RATE = 12, 4, 1e-3
# The gradient of the first kernel is a sum of 200 000 terms that nearly cancel. At 4×192×256 both networks differ from
# their float64 results by 5e-3 to 8e-3 of the largest value; in float64 they differ from each other by 6e-14.
TOLERANCE, CONVOLUTIONS_TOLERANCE = 3e-2, 1e-4


def rows(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns one row per width and convolution: twice the images, 3/8 of the height and 1/4 of the width."""
    # Sizes that pooling divides, because PyTorch's network does not pad.
    height, width = (max(size // 2**DEPTH, 1) * 2**DEPTH for size in (3 * setting.shape[1] // 8, setting.shape[2] // 4))
    shape = 2 * setting.shape[0], height, width
    found = {f"{STEP}, width {w}": partial(_row, w, shape, setting) for w in WIDTHS}
    for level in range(DEPTH + 1):
        at = shape[0], height >> level, width >> level, WIDTHS[0] << level
        found[f"convolution, {'×'.join(map(str, at))}"] = partial(_convolution, at, setting)
    return found


def _row(width: int, shape: tuple[int, int, int], setting: Setting) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((*shape, 3), np.float32)
    labels = rng.integers(0, CLASSES, shape)
    model = UNet(CLASSES, width=width, depth=DEPTH, padding="zeros")
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    candidates = [Candidate(OURS, partial(_our_step, model, variables, images, labels), lambda result: result)]
    for label in COLUMNS:
        candidates.append(
            Candidate(
                label, partial(_torch_step, label == LAST, width, variables, images, labels), lambda result: result
            )
        )
    return measure(candidates, setting, TOLERANCE)


def _convolution(shape: tuple[int, ...], setting: Setting) -> dict[str, Any]:
    rng, channels = np.random.default_rng(0), shape[-1]
    image, cotangent = (rng.standard_normal(shape, np.float32) for _ in range(2))
    kernel = rng.standard_normal((3, 3, channels, channels), np.float32)
    candidates = [Candidate(OURS, partial(_our_convolution, image, kernel, cotangent), lambda result: result)]
    for label in COLUMNS:
        candidates.append(
            Candidate(
                label, partial(_torch_convolution, label == LAST, image, kernel, cotangent), lambda result: result
            )
        )
    return measure(candidates, setting, CONVOLUTIONS_TOLERANCE)


def _our_convolution(image: np.ndarray, kernel: np.ndarray, cotangent: np.ndarray) -> Callable[[], Any]:
    convolution = partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    @jax.jit
    def run(image, kernel, cotangent):
        made, gradients = jax.vjp(convolution, image, kernel)
        return made, gradients(cotangent)

    return partial(run, *map(jnp.asarray, (image, kernel, cotangent)))


def _torch_convolution(last: bool, image: np.ndarray, kernel: np.ndarray, cotangent: np.ndarray) -> Callable[[], Any]:
    torch = torch_here()
    layout = torch.channels_last if last else torch.contiguous_format
    x, cotangent = (
        torch.from_numpy(a).permute(0, 3, 1, 2).contiguous(memory_format=layout) for a in (image, cotangent)
    )
    k = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).contiguous(memory_format=layout)
    x, k = x.requires_grad_(), k.requires_grad_()

    def run() -> Any:
        made = torch.nn.functional.conv2d(x, k, padding=1)
        of_x, of_k = torch.autograd.grad(made, (x, k), cotangent)
        return (
            made.detach().permute(0, 2, 3, 1).numpy(),
            (of_x.permute(0, 2, 3, 1).numpy(), of_k.permute(2, 3, 1, 0).numpy()),
        )

    return run


def targets(measured: dict[str, Any]) -> list[Target]:
    """Returns target 3, for the steps."""
    return [
        Target(3, f"{name} / {label}", quotient(row["ms"][OURS], row["ms"].get(label)), 1.0)
        for name, row in measured.items()
        if name.startswith(STEP)
        for label in COLUMNS
    ]


def _our_step(model: UNet, variables: Any, images: np.ndarray, labels: np.ndarray) -> Callable[[], Any]:
    optimizer = optax.adam(RATE)

    def loss(params, stats, images, labels):
        output, updated = model.apply({"params": params, **stats}, images, train=True, mutable=list(stats))
        return losses.mean(losses.softmax_cross_entropy(output.logits, labels)), updated

    @partial(jax.jit, donate_argnums=0)
    def step(state, images, labels):
        params, stats, moments = state
        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params, stats, images, labels)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), stats, moments), (value, _compared(gradient))

    # A copy, because the donated state is gone after a step and PyTorch starts from the same variables.
    params = jax.tree.map(jnp.copy, variables["params"])
    stats = {name: jax.tree.map(jnp.copy, tree) for name, tree in variables.items() if name != "params"}
    state = [(params, stats, optimizer.init(params))]
    batch = jnp.asarray(images), jnp.asarray(labels, jnp.int32)

    def run() -> Any:
        state[0], found = step(state[0], *batch)
        return found

    return run


def _compared(gradient: Any) -> tuple[Any, Any]:
    return gradient["down0"]["conv1"]["kernel"], gradient["head"]["linear"]["kernel"]


def _torch_step(last: bool, width: int, variables: Any, images: np.ndarray, labels: np.ndarray) -> Callable[[], Any]:
    torch = torch_here()
    network = torch_unet(torch, width, jax.device_get(variables["params"]))
    layout = torch.channels_last if last else torch.contiguous_format
    network = network.to(memory_format=layout)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    y = torch.from_numpy(labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    first, linear = network.blocks[0][0].weight, network.head.weight

    def run() -> Any:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(network(x), y)
        value.backward()
        optimizer.step()
        kernels = first.grad.permute(2, 3, 1, 0), linear.grad[:, :, 0, 0].T
        return value.detach().numpy(), tuple(kernel.contiguous().numpy() for kernel in kernels)

    return run


def torch_unet(torch: Any, width: int, params: Any) -> Any:
    """Builds the same U-Net as a `torch.nn.Module` with our weights."""
    nn = torch.nn

    def block(channels: int, features: int) -> Any:
        convs = [nn.Conv2d(c, features, 3, padding=1, bias=False) for c in (channels, features)]
        return nn.Sequential(*(m for c in convs for m in (c, nn.BatchNorm2d(features), nn.ReLU(inplace=True))))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            wide = [width * 2**level for level in range(DEPTH + 1)]
            down = [block(c, f) for c, f in zip([3, *wide], wide, strict=False)]
            up = [block(2 * f, f) for f in reversed(wide[:-1])]
            self.blocks = nn.ModuleList([*down, *up])
            self.ups = nn.ModuleList([nn.ConvTranspose2d(2 * f, f, 2, stride=2) for f in reversed(wide[:-1])])
            self.head = nn.Conv2d(width, CLASSES, 1)

        def forward(self, x: Any) -> Any:
            skips = []
            for level in range(DEPTH):
                skips.append(self.blocks[level](x))
                x = nn.functional.max_pool2d(skips[-1], 2)
            x = self.blocks[DEPTH](x)
            for i, up in enumerate(self.ups):
                x = self.blocks[DEPTH + 1 + i](torch.cat([skips[-1 - i], up(x)], dim=1))
            return self.head(x)

    network = Network()
    names = [*(f"down{level}" for level in range(DEPTH + 1)), *(f"up{level}" for level in reversed(range(DEPTH)))]
    with torch.no_grad():
        for name, layers in zip(names, network.blocks, strict=True):
            for i in (1, 2):
                layers[3 * i - 3].weight.copy_(torch.tensor(params[name][f"conv{i}"]["kernel"].transpose(3, 2, 0, 1)))
        for level, up in zip(reversed(range(DEPTH)), network.ups, strict=True):
            of_up = params[f"up{level}_transpose"]
            # The kernel of flax is rotated by 180 degrees.
            up.weight.copy_(torch.tensor(of_up["kernel"][::-1, ::-1].transpose(2, 3, 0, 1).copy()))
            up.bias.copy_(torch.tensor(of_up["bias"]))
        linear = params["head"]["linear"]
        network.head.weight.copy_(torch.tensor(linear["kernel"].T[:, :, None, None].copy()))
        network.head.bias.copy_(torch.tensor(linear["bias"]))
    return network
