"""Bytes that a compiled TPU program moves through its HBM, and its estimated cycles, read from its HLO text.

XLA's own "bytes accessed" adds up the bytes of every instruction in any memory. A TPU keeps arrays that fit in its VMEM
(128 MiB on a v5e chip), where traffic is almost free. The layout of such an array contains S(1).
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
# These move nothing. The end of an asynchronous pair is counted at its start.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id")
# Memory that a loop will write, and slices that are already adjacent.
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
        """Returns the names of the operands."""
        return re.findall(r"%([\w.-]+)", self.arguments)


Computation = dict[str, Instruction]


def hbm_traffic(hlo: str) -> int:
    """Returns the bytes that one run of an optimised module (`Compiled.as_text`) reads from and writes to HBM.

    Each instruction reads its operands once and writes its result, padded to the tiles of their layouts. Of a sliced
    operand only the slices count, and of an array that is updated in place only the update. Repeated reads by the
    windows of a convolution are not counted. The body of a loop and every branch count once.

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
    """Returns the compiler's estimate of the cycles of one run, or None if the module contains no estimate.

    XLA for TPUs chooses between implementations by this estimate. The body of a loop and every branch count once.

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
    """Returns the bytes in HBM (or, `anywhere`, in any memory) of all arrays of an HLO shape, which may be a tuple.

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
    """Splits after the first word, or after the parenthesis that closes a leading one."""
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
    if one.kind == "slice-start":  # ((operand), slice, context)
        part = _ARRAY.search(_until_closed(one.shape[1:])[1])[0]
        return array_bytes(part) + _part_of(shapes[0], part)
    if one.kind == "copy-start":  # (copy, operand, context)
        return array_bytes(one.shape)
    if one.kind == _UPDATE:
        return array_bytes(shapes[1]) + _part_of(one.shape, shapes[1])
    return array_bytes(one.shape) + sum(map(array_bytes, shapes))


def _called_by(one: Instruction) -> list[str]:
    """Returns the computations of a loop, of the branches of a conditional, or of a call."""
    return re.findall(r"%([\w.-]+)", " ".join(_CALLED.findall(one.rest)))


def _part_of(whole: str, part: str) -> int:
    """Returns the bytes moved where only a part of an array is read or written: 0 if the array is not in HBM."""
    return array_bytes(part, anywhere=True) if array_bytes(whole) else 0


def _of_fusion(computations: dict[str, Computation], fused: Computation, shape: str, operands: list[str]) -> float:
    root = _root(fused)
    results = [fused[name] for name in fused[root].operands] if fused[root].kind == "tuple" else [fused[root]]
    arrays = [array[0] for array in _ARRAY.finditer(shape)]
    if len(results) != len(arrays):  # one instruction returns several arrays, such as a reduction of pairs
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
    """Builds `share(name)`, the fraction of a value of a fused computation that its results read."""
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
            # The update is in place if it is a result of the fusion.
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
    """Returns the fraction of its image that a convolution reads: negative padding removes rows and columns."""
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
