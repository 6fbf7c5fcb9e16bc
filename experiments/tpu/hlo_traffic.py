"""How many bytes a compiled TPU program moves through its HBM, and how long it may take, read from its HLO text.

XLA's own "bytes accessed" adds up what every instruction reads and writes, wherever it lies. A TPU keeps what fits in
its VMEM, 128 MiB on a v5e chip, and that traffic costs next to nothing: layouts say which arrays these are, S(1).
"""

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

_ARRAY = re.compile(r"\b(?P<kind>pred|[a-z]+(?P<bits>\d+)\w*)\[(?P<sizes>[\d,]*)\](?:\{(?P<layout>[^}]*)\})?")
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>[\w.-]+) \(.*\{$", re.MULTILINE)
_CALLED = re.compile(r"(?:body|to_apply|true_computation|false_computation|branch_computations)=(%[\w.-]+|\{[^}]*\})")
_CALLS = re.compile(r"calls=%([\w.-]+)")
_CONTROL = ("while", "conditional", "call")
# Nothing is moved: a name for a part or for a place; and the end of what was counted where it began.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id")
# Room for what a loop will write, and slices that already lie one after the other.
_FREE_CALLS = ('custom_call_target="AllocateBuffer"', 'custom_call_target="ConcatBitcast"')
_SLICES = ("slice", "dynamic-slice")
_UPDATE = "dynamic-update-slice"


class Instruction(NamedTuple):
    """One line of a computation."""

    shape: str
    kind: str
    arguments: str
    rest: str
    root: bool

    @property
    def operands(self) -> list[str]:
        """Their names."""
        return re.findall(r"%([\w.-]+)", self.arguments)


Computation = dict[str, Instruction]


def hbm_traffic(hlo: str) -> int:
    """Bytes that one run through the program reads from and writes to HBM, as `jax.stages.Compiled.as_text` has it.

    Each instruction reads its operands once and writes its result, padded to the tiles of their layouts; of an operand
    that it takes slices of, the slices; of an array that it updates in place, the update. What a convolution reads
    again for another window is not counted. The body of a loop is counted once, and every branch.

    Args:
        hlo: the text of an optimised module.

    Returns:
        Bytes.

    >>> hbm_traffic('''ENTRY %main (x: f32[3]) -> f32[3] {
    ...   %x = f32[3]{0:T(128)} parameter(0)
    ...   %y = f32[3]{0:T(128)S(1)} negate(%x)
    ...   ROOT %z = f32[3]{0:T(128)} negate(%y)
    ... }''')
    1024
    """
    computations, entry = _computations(hlo)
    return round(_of_computation(computations, entry))


def estimated_cycles(hlo: str) -> int | None:
    """The compiler's own guess of how long one run through the program takes; None where it wrote down none.

    Cycles of the chip's cores, which is what XLA for TPUs chooses between its ways by. As in `hbm_traffic` the body of
    a loop is counted once, and every branch.

    >>> estimated_cycles('''ENTRY %main (x: f32[3]) -> f32[3] {
    ...   %x = f32[3]{0} parameter(0)
    ...   ROOT %y = f32[3]{0} negate(%x), backend_config={"estimated_cycles":"120"}
    ... }''')
    120
    """
    computations, entry = _computations(hlo)

    def of(name: str) -> int:
        return sum(of_instruction(one) for one in computations[name].values())

    def of_instruction(one: Instruction) -> int:
        if one.kind in _CONTROL:
            return sum(map(of, _called_by(one)))
        found = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
        return int(found[1]) if found else 0

    return of(entry) or None


def array_bytes(shape: str, *, anywhere: bool = False) -> int:
    """Bytes in HBM, or of any memory, of all arrays of an HLO shape, which may be a tuple.

    >>> array_bytes("(f32[3,200]{1,0:T(8,128)}, bf16[2,5,64]{2,0,1:T(2,128)(2,1)}, pred[9]{0:T(128)S(1)})")
    10752
    """
    return sum(_padded(array) for array in _ARRAY.finditer(shape) if anywhere or not _in_vmem(array))


def _in_vmem(array: re.Match) -> bool:
    return bool(re.search(r"S\([1-9]", array["layout"] or ""))


def _padded(array: re.Match) -> int:
    sizes = [int(size) for size in filter(None, array["sizes"].split(","))]
    minor_first, _, tiles = (array["layout"] or "").partition(":")
    if minor_first and (tile := re.match(r"T\(([\d,]+)\)", tiles)):
        sizes = [sizes[int(axis)] for axis in minor_first.split(",")]
        for i, side in enumerate(reversed(tile[1].split(","))):
            if i < len(sizes):
                sizes[i] = -(-sizes[i] // int(side)) * int(side)
    return math.prod(sizes) * -(-int(array["bits"] or 8) // 8)


def _computations(hlo: str) -> tuple[dict[str, Computation], str]:
    found, entry = {}, ""
    for head in _HEAD.finditer(hlo):
        body = hlo[head.end() : hlo.index("\n}", head.end())]
        instructions = (_instruction(line) for line in body.splitlines())
        found[head["name"]] = dict(one for one in instructions if one)
        entry = head["name"] if head["entry"] else entry
    return found, entry


def _instruction(line: str) -> tuple[str, Instruction] | None:
    match = re.match(r"\s*(ROOT )?%([\w.-]+) = ", line)
    if match is None:
        return None
    shape, rest = _until_closed(line[match.end() :])
    kind, _, rest = rest.strip().partition("(")
    arguments, rest = _until_closed(f"({rest}")
    return match[2], Instruction(shape, kind, arguments, rest, bool(match[1]))


def _until_closed(text: str) -> tuple[str, str]:
    """Splits after the first word, or after the parenthesis that closes the one it begins with."""
    if not text.startswith("("):
        word, _, rest = text.partition(" ")
        return word, rest
    depth = 0
    for end, character in enumerate(text, 1):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[:end], text[end:]
    return text, ""


def _of_computation(computations: dict[str, Computation], name: str) -> float:
    body = computations[name]
    return sum(_of_instruction(computations, body, one) for one in body.values())


def _of_instruction(computations: dict[str, Computation], body: Computation, one: Instruction) -> float:
    if one.kind in _FREE or one.kind.endswith("-done") or any(target in one.rest for target in _FREE_CALLS):
        return 0
    if one.kind in _CONTROL:
        return sum(_of_computation(computations, name) for name in _called_by(one))
    shapes = [body[name].shape for name in one.operands if name in body]
    if one.kind == "fusion":
        return _of_fusion(computations, computations[_CALLS.search(one.rest)[1]], one.shape, shapes)
    if one.kind in _SLICES:
        return array_bytes(one.shape) + _part_of(shapes[0], one.shape)
    if one.kind == "slice-start":  # ((what is sliced), the slice, a context)
        part = _ARRAY.search(_until_closed(one.shape[1:])[1])[0]
        return array_bytes(part) + _part_of(shapes[0], part)
    if one.kind == "copy-start":  # (the copy, what is copied, a context)
        return array_bytes(one.shape)
    if one.kind == _UPDATE:
        return array_bytes(shapes[1]) + _part_of(one.shape, shapes[1])
    return array_bytes(one.shape) + sum(map(array_bytes, shapes))


def _called_by(one: Instruction) -> list[str]:
    """The computations of a loop, of the branches of a condition, or of a call."""
    return re.findall(r"%([\w.-]+)", " ".join(_CALLED.findall(one.rest)))


def _part_of(whole: str, part: str) -> int:
    """What is moved of an array of which only a part is taken, or set: nothing where it does not lie in HBM."""
    return array_bytes(part, anywhere=True) if array_bytes(whole) else 0


def _of_fusion(computations: dict[str, Computation], fused: Computation, shape: str, operands: list[str]) -> float:
    root = _root(fused)
    results = [fused[name] for name in fused[root].operands] if fused[root].kind == "tuple" else [fused[root]]
    arrays = [array[0] for array in _ARRAY.finditer(shape)]
    if len(results) != len(arrays):  # one instruction gives several arrays, as a reduction of pairs does
        results = [fused[root]] * len(arrays)
    moved = 0
    for result, array in zip(results, arrays, strict=True):
        moved += _part_of(array, fused[result.operands[1]].shape) if result.kind == _UPDATE else array_bytes(array)
    share = _share_of(computations, fused)
    for name, one in fused.items():
        if one.kind == "parameter":
            moved += array_bytes(operands[int(one.arguments[1:-1])]) * share(name)
    return moved


def _share_of(computations: dict[str, Computation], fused: Computation) -> Callable[[str], float]:
    """A function that says how much of a value of a fused computation is read, between 0 and 1, for all it gives."""
    root, users = _root(fused), {name: [] for name in fused}
    for user, one in fused.items():
        for name in dict.fromkeys(one.operands):
            users[name].append(user)

    @functools.cache
    def share(name: str) -> float:
        return min(1.0, (name == root) + sum(by(user, name) for user in users[name]))

    def by(user: str, name: str) -> float:
        one = fused[user]
        if one.kind in _SLICES:
            of, all_of = (array_bytes(fused[key].shape, anywhere=True) for key in (user, name))
            return of / all_of
        if one.kind == _UPDATE and one.operands[0] == name:
            # In place where it is what the fusion gives.
            return 0.0 if user == root or (fused[root].kind == "tuple" and user in fused[root].operands) else 1.0
        if one.kind == "convolution" and one.operands[0] == name:
            return _seen_by(one, fused[name].shape)
        if one.kind == "fusion":
            inner = computations[_CALLS.search(one.rest)[1]]
            number = str(one.operands.index(name))
            parameter = next(key for key, o in inner.items() if o.kind == "parameter" and o.arguments == f"({number})")
            return share(user) * _share_of(computations, inner)(parameter)
        return share(user)

    return share


def _seen_by(convolution: Instruction, image: str) -> float:
    """The share of its image that a convolution sees: negative padding cuts lines off."""
    window = dict(re.findall(r"(\w+)=([\w-]+)", re.search(r"window=\{([^}]*)\}", convolution.rest + "window={}")[1]))
    labels = re.search(r"dim_labels=(\w+)_", convolution.rest)
    if "pad" not in window or labels is None:
        return 1.0
    sizes = [int(size) for size in _ARRAY.search(image)["sizes"].split(",")]
    share = 1.0
    for axis, pad in enumerate(window["pad"].split("x")):
        size = sizes[labels[1].index(str(axis))]
        share *= max(0, size + sum(min(0, int(side)) for side in pad.split("_"))) / size
    return share


def _root(fused: Computation) -> str:
    (root,) = (name for name, one in fused.items() if one.root)
    return root
