"""Collectives of a compiled program, counted in its HLO text."""

import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")

_INSTRUCTION = re.compile(
    rf"^\s*(?:ROOT )?%?[\w.-]+ = (?P<shape>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(", re.MULTILINE
)
# Layouts, `{1,0:T(8,128)(2,1)}`, and the comments that number a long tuple, `/*index=5*/`.
_NOISE = re.compile(r"\{[^{}]*\}|/\*.*?\*/")
_ARRAY = re.compile(r"\b(?P<kind>[a-z]+)(?P<bits>\d*)\w*\[(?P<shape>[\d,]*)\]")


class Traffic(NamedTuple):
    """Number of collectives of a kind, and the bytes of their results on one device."""

    count: int
    bytes: int


def collectives(hlo: str) -> dict[str, Traffic]:
    """Counts the collectives of an HLO module, as `jax.stages.Compiled.as_text` gives it.

    An asynchronous pair, `-start` and `-done`, is one collective. The body of a loop is counted once. The bytes are
    those of the result on each device. A ring of n devices sends 2 (n - 1) / n times as many bytes per device for an
    all-reduce.

    Returns:
        The traffic of each kind that occurs.

    >>> collectives("  %r = f32[8,2]{1,0} all-reduce(f32[8,2]{1,0} %x), replica_groups={{0,1}}, to_apply=%add")
    {'all-reduce': Traffic(count=1, bytes=64)}
    """
    found: dict[str, Traffic] = {}
    for line in hlo.splitlines():
        if not any(kind in line for kind in KINDS):
            continue
        match = _INSTRUCTION.match(_NOISE.sub("", line))
        if match is None:
            continue
        kind, shape = match["kind"], match["shape"]
        if match["start"] and kind != "all-reduce":  # (operand, result, ...); all-reduce: the result only
            shape = _elements(shape)[1]
        before = found.get(kind, Traffic(0, 0))
        found[kind] = Traffic(before.count + 1, before.bytes + shape_bytes(shape))
    return {kind: found[kind] for kind in KINDS if kind in found}


def shape_bytes(shape: str) -> int:
    """Returns the bytes of all arrays in an HLO shape without layouts and padding, such as `(f32[3], bf16[2,4])`.

    >>> shape_bytes("(f32[3], bf16[2,4], pred[])")
    29
    """
    return sum(_array_bytes(array) for array in _ARRAY.finditer(shape))


def _array_bytes(array: re.Match) -> int:
    bits = int(array["bits"] or 8)  # pred has no number and takes one byte
    for size in filter(None, array["shape"].split(",")):
        bits *= int(size)
    return -(-bits // 8)


def _elements(shape: str) -> list[str]:
    """Returns the elements of a tuple, which may be tuples."""
    elements, depth = [""], 0
    for character in shape.strip()[1:-1]:
        depth += (character in "([") - (character in ")]")
        if character == "," and not depth:
            elements.append("")
        else:
            elements[-1] += character
    return elements
