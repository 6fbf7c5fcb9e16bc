"""Reader of PyTorch's weight files, `.pth` and `.pt`, without PyTorch and without unpickling.

A file of `torch.save(model.state_dict(), …)` has a pickle that names the arrays, and their bytes. Here a small
interpreter executes the opcodes that such a pickle needs. It imports nothing and calls nothing: a name in the pickle is
compared with the few that describe tensors, and any other content is an error.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_DICT, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_DTYPES = {
    "torch BFloat16Storage": jnp.bfloat16,
    "torch BoolStorage": np.bool_,
    "torch ByteStorage": np.uint8,
    "torch CharStorage": np.int8,
    "torch DoubleStorage": np.float64,
    "torch FloatStorage": np.float32,
    "torch HalfStorage": np.float16,
    "torch IntStorage": np.int32,
    "torch LongStorage": np.int64,
    "torch ShortStorage": np.int16,
}
# A file of the format before PyTorch 1.6 begins with pickles of these two numbers.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING")
_MALFORMED = (IndexError, KeyError, OverflowError, RuntimeError, TypeError, struct.error, zipfile.BadZipFile)
_MARK = object()


class _Name(NamedTuple):
    """A name in a pickle, "module name"."""

    name: str


class _Storage(NamedTuple):
    """The bytes of one or more tensors: their key in the file, dtype and number of elements."""

    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A tensor: its storage, the index of its first element there, its shape and its strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a PyTorch state dict by name, read-only and with the dtypes of the file.

    Both formats are read: the zip archive of PyTorch 1.6 and newer, and the one before.

    Raises: ValueError if the file contains anything but tensors by name, or is damaged.
    """
    data = path.read_bytes()
    try:
        return (_read_zip if data[:2] == b"PK" else _read_legacy)(data)
    except (ValueError, *_MALFORMED) as error:
        # The message may quote the file: one short line of it is enough.
        reason = ascii(str(error))[1:-1][:200] if isinstance(error, ValueError) else "its structure is not valid"
        raise ValueError(f"{path}: the file contains more than tensors by name, or it is damaged: {reason}") from error


def _read_zip(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        compressed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
        if compressed or sum(info.file_size for info in archive.infolist()) > len(data):
            raise ValueError("its parts are compressed, or larger than the archive")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise ValueError("its numbers are not little-endian")
        state = _interpret(io.BytesIO(archive.read(entries["data.pkl"])))
        contents = {}

        def bytes_of(storage: _Storage) -> bytes:
            if storage.key not in contents:
                contents[storage.key] = archive.read(entries[f"data/{storage.key}"])
            return contents[storage.key]

        return _arrays(state, bytes_of, len(data))


def _read_legacy(data: bytes) -> dict[str, np.ndarray]:
    stream = io.BytesIO(data)
    if _interpret(stream) != _MAGIC or _interpret(stream) != _PROTOCOL:
        raise ValueError("it does not begin like a file of torch.save")
    if _typed(_interpret(stream), dict).get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    state = _interpret(stream)
    storages = {tensor.storage.key: tensor.storage for tensor in _tensors(state)}
    contents = {}
    for key in _typed(_interpret(stream), list):
        storage = storages[_typed(key, str)]
        if struct.unpack("<q", stream.read(8)) != (storage.size,):
            raise ValueError(f"the size of the storage {key} is not that of its tensors")
        contents[key] = stream.read(storage.size * storage.dtype.itemsize)
    return _arrays(state, lambda storage: contents[storage.key], len(data))


def _tensors(state: Any) -> list[_Tensor]:
    """Returns the tensors of a state dict; raises ValueError if it contains anything else."""
    if type(state) is not dict or not all(type(value) is _Tensor for value in state.values()):
        raise ValueError("expected tensors by name, from torch.save(model.state_dict(), ...)")
    return list(state.values())


def _arrays(state: Any, bytes_of: Callable[[_Storage], bytes], limit: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a state dict; raises ValueError for more than `limit` elements, or more than were stored.

    The limit keeps a small file from filling the memory with views of the same bytes.
    """
    if sum(math.prod(tensor.shape) for tensor in _tensors(state)) > limit:
        raise ValueError("its tensors have more elements than the file has bytes")
    arrays = {}
    for name, (storage, offset, shape, strides) in state.items():
        elements = np.frombuffer(bytes_of(storage), storage.dtype, storage.size)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if 0 not in shape and last >= storage.size:
            raise ValueError(f"the tensor {name} is larger than its storage")
        steps = [stride * storage.dtype.itemsize for stride in strides]
        arrays[name] = np.lib.stride_tricks.as_strided(
            elements[offset:] if 0 not in shape else elements[:0], shape, steps, writeable=False
        )
    return arrays


def _interpret(stream: io.BytesIO) -> Any:
    """Returns the value of the next pickle of the stream: numbers, strings, containers, and `_Tensor`s."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            stack.append(argument)
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(_pop(stack, int(name[-1]))))
        elif name == "TUPLE":
            stack.append(tuple(_pop_to_mark(stack)))
        elif name in ("APPEND", "APPENDS"):
            items = _pop_to_mark(stack) if name == "APPENDS" else _pop(stack, 1)
            _typed(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = _pop_to_mark(stack) if name == "SETITEMS" else _pop(stack, 2)
            keys = (_typed(key, str) for key in items[::2])
            _typed(stack[-1], dict).update(zip(keys, items[1::2], strict=True))
        elif name == "GLOBAL":
            if argument not in (_DICT, _TENSOR, *_DTYPES):
                raise ValueError(f"it contains {argument}")
            stack.append(_Name(argument))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            function, arguments = _pop(stack, 2)
            stack.append(_construct(_typed(function, _Name).name, _typed(arguments, tuple)))
        elif name == "BUILD":  # the attribute _metadata of an OrderedDict
            stack.pop()
            _typed(stack[-1], dict)
        elif name != "PROTO":
            raise ValueError(f"it contains the pickle opcode {name}")
    raise ValueError("a pickle in it does not end")


def _pop(stack: list[Any], count: int) -> list[Any]:
    """Removes and returns the last `count` values of the stack."""
    values = stack[-count:]
    if len(values) < count:
        raise IndexError
    del stack[-count:]
    return values


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    """Removes and returns the values above the last mark, and removes the mark."""
    place = len(stack) - 1
    while stack[place] is not _MARK:
        place -= 1
    values = stack[place + 1 :]
    del stack[place:]
    return values


def _typed(value: Any, kind: type) -> Any:
    """Returns `value`; raises TypeError if it is not of exactly this type."""
    if type(value) is not kind:
        raise TypeError
    return value


def _construct(name: str, arguments: tuple[Any, ...]) -> Any:
    """Returns what a call in the pickle constructs: an empty dict or a `_Tensor`."""
    if name == _DICT and not arguments:
        return {}
    if name != _TENSOR:
        raise ValueError(f"it calls {name} with {len(arguments)} arguments")
    storage, offset, shape, strides = arguments[:4]  # then requires_grad and two dicts of hooks and metadata
    sizes = (_typed(offset, int), *_typed(shape, tuple), *_typed(strides, tuple))
    if len(shape) != len(strides) or min(_typed(size, int) for size in sizes) < 0:
        raise ValueError("a tensor has invalid sizes")
    return _Tensor(_typed(storage, _Storage), offset, shape, strides)


def _storage(identity: Any) -> _Storage:
    kind, dtype, key, _, size, *view = _typed(identity, tuple)
    if _typed(kind, str) != "storage" or view not in ([], [None]) or _typed(size, int) < 0:
        raise ValueError("it refers to something that is not a storage")
    return _Storage(_typed(key, str), np.dtype(_DTYPES[_typed(dtype, _Name).name]), size)
