"""Files that PyTorch wrote (`golden/efficientnets.py`), and files of which nothing may be executed or filled in."""

import contextlib
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from segjax.models.torch_file import read_torch_file

GOLDEN = Path(__file__).parent / "golden"
FILES = ("weights.pth", "weights_old.pth")
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
END = b"."


@pytest.mark.parametrize("name", FILES)
def test_read_torch_file_reads_dtypes_and_layouts(name):
    arrays, numbers = read_torch_file(GOLDEN / name), np.arange(24)
    dtypes = {name: arrays[name].dtype.name for name in ("float64", "float16", "bfloat16", "int32")}
    assert dtypes == {name: name for name in dtypes}
    for name in dtypes:
        np.testing.assert_array_equal(arrays[name].astype(np.float64), numbers)
    assert arrays["bool"].dtype == bool
    np.testing.assert_array_equal(arrays["bool"], numbers > 11)
    np.testing.assert_array_equal(arrays["transposed"], numbers.reshape(2, 3, 4).transpose(2, 0, 1))
    np.testing.assert_array_equal(arrays["part"], [5, 7, 9])
    assert arrays["scalar"].shape == ()
    assert arrays["scalar"] == 7
    assert arrays["empty"].shape == (0, 3)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def storage(key: str = "0", kind: bytes = text("storage"), dtype: str = "FloatStorage", size: int = 4) -> bytes:
    return b"(" + kind + name("torch", dtype) + text(key) + text("cpu") + integer(size) + b"tQ"


def tensor(parts: bytes | None = None, *, offset: int = 0, shape=(2, 2), strides=(2, 1)) -> bytes:
    parts = storage() if parts is None else parts
    arguments = parts + integer(offset) + sizes(*shape) + sizes(*strides) + b"\x89" + b"}"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def state(*pairs: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(pairs) + b"u."


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED, **parts: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as file:
        for part, content in {"data.pkl": pickled, "data/0": np.arange(4, dtype="<f4").tobytes(), **parts}.items():
            file.writestr(f"archive/{part}", content)
    return data.getvalue()


def read(tmp_path: Path, data: bytes) -> dict[str, np.ndarray]:
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    return read_torch_file(path)


def test_read_torch_file_of_assembled_parts(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, archive(state(text("a"), tensor())))["a"], [[0, 1], [2, 3]])
    old = MAGIC + state(text("a"), tensor()) + pickle.dumps(["0"], 2) + struct.pack("<q4f", 4, 0, 1, 2, 3)
    np.testing.assert_array_equal(read(tmp_path, old)["a"], [[0, 1], [2, 3]])


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


EXECUTES = {
    "a call": pickle.dumps({"a": Evil()}, 2),
    "builtins": state(text("a"), name("builtins", "eval") + b"(" + text("1") + b"tR"),
    "a class of torch": state(text("a"), name("torch", "load") + b"(" + text("f") + b"tR"),
    "stack global": state(text("a"), text("os") + text("system") + b"\x93"),
    "an instance": state(text("a"), b"(" + text("ls") + b"ios\nsystem\n"),
    "an object": state(text("a"), name("torch", "FloatStorage") + b")\x81"),
    "a call of a storage": state(text("a"), name("torch", "FloatStorage") + b"(" + integer(9) + b"tR"),
    "a dict with arguments": state(text("a"), name("collections", "OrderedDict") + b"(]tR"),
    "a registered extension": state(text("a"), b"\x82\x01"),
}


@pytest.mark.parametrize("pickled", EXECUTES.values(), ids=EXECUTES)
@pytest.mark.parametrize("form", [archive, lambda pickled: MAGIC + pickled], ids=["zip", "legacy"])
def test_read_torch_file_executes_nothing(form, pickled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"^.*weights.pth: the file contains more than tensors by name, or .*$"
    ) as error:
        read(tmp_path, form(pickled))
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]


# A pickle whose tuples contain the one before twice: hashing, comparing or printing it takes 2^64 steps.
NESTED = integer(1) + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(64))
ONE = text("a")
VIEWS = [text(str(i)) + b"h\x00" for i in range(999)]
REFUSED = {
    "a number": (archive(state(ONE, integer(3))), "expected tensors by name"),
    "a list of tensors": (archive(b"\x80\x02](" + tensor() + b"e."), "expected tensors by name"),
    "a nested state": (archive(state(ONE, b"}" + ONE + tensor() + b"s")), "expected tensors by name"),
    "a nested key": (archive(state(NESTED, tensor())), "structure is not valid"),
    "a nested storage": (archive(state(ONE, tensor(storage(kind=NESTED)))), "structure is not valid"),
    "a nested offset": (archive(state(ONE, tensor(NESTED))), "structure is not valid"),
    "a nested list of keys": (MAGIC + state(ONE, tensor()) + b"\x80\x02](" + NESTED + b"e.", "structure is not valid"),
    "no storage": (archive(state(ONE, tensor(storage("1")))), "structure is not valid"),
    "another storage": (archive(state(ONE, tensor(storage(kind=text("module"))))), "not a storage"),
    "an unknown dtype": (archive(state(ONE, tensor(storage(dtype="QInt8Storage")))), "contains torch QInt8Storage"),
    "beyond its storage": (archive(state(ONE, tensor(offset=1))), "larger than its storage"),
    "beyond the file": (archive(state(ONE, tensor(storage(size=99)))), "buffer is smaller"),
    "a negative stride": (archive(state(ONE, tensor(strides=(-2, 1)))), "invalid sizes"),
    "a negative offset": (archive(state(ONE, tensor(offset=-1))), "invalid sizes"),
    "other strides": (archive(state(ONE, tensor(strides=(1,)))), "invalid sizes"),
    "stride 0": (archive(state(ONE, tensor(shape=(2**40, 2**40), strides=(0, 0)))), "more elements than the file"),
    "a huge size": (archive(state(ONE, tensor(shape=(1, 1), strides=(2**80, 1)))), "structure is not valid"),
    "many views": (
        archive(
            state(ONE, tensor(storage(size=4096), shape=(4096,), strides=(1,)) + b"q\x00", *VIEWS),
            **{"data/0": bytes(4 * 4096)},
        ),
        "more elements than the file",
    ),
    "big-endian": (archive(state(ONE, tensor()), byteorder=b"big"), "not little-endian"),
    "big-endian, old": (MAGIC.replace(b"\x88", b"\x89") + state(ONE, tensor()), "not little-endian"),
    "compressed": (archive(state(ONE, tensor()), zipfile.ZIP_DEFLATED), "compressed, or larger"),
    "another size": (
        MAGIC + state(ONE, tensor()) + pickle.dumps(["0"], 2) + struct.pack("<q", 5),
        "size of the storage 0",
    ),
    "cut off": (archive(state(ONE, tensor()))[:-40], "structure is not valid"),
    "cut off, old": (MAGIC + state(ONE, tensor())[:-1], "not enough|exhausted|does not end"),
    "an empty stack": (archive(b"\x80\x02."), "structure is not valid"),
    "no mark": (archive(b"\x80\x02}u."), "structure is not valid"),
    "another opcode": (archive(b"\x80\x02I5\n."), "pickle opcode INT"),
    "a long text": (archive(b"\x80\x02X\xff\xff\xff\xff."), "expected"),
    "another pickle": (pickle.dumps({}, 2), "does not begin like"),
    "text": (b"weights\n", "at position 0"),
    "nothing": (b"", "exhausted"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_read_torch_file_refuses_in_one_line(data, message, tmp_path):
    with pytest.raises(ValueError, match=rf"weights.pth: the file contains more than .*({message})") as error:
        read(tmp_path, data)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("source", FILES)
def test_read_torch_file_damaged_anywhere_gives_an_error_or_arrays(source, tmp_path):
    data, rng = (GOLDEN / source).read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(ValueError):
            arrays = read(tmp_path, bytes(damaged[: rng.integers(len(data) // 2, len(data) + 1)]))
            assert all(isinstance(array, np.ndarray) for array in arrays.values())
