"""Collectives in the text of small HLO programs."""

import pytest

from experiments.tpu.hlo_collectives import Traffic, collectives, shape_bytes

REDUCE = "  %all-reduce.1 = f32[64,3]{1,0:T(4,128)} all-reduce(%add.2), channel_id=1, to_apply=%s"


def test_collectives_of_one_device():
    assert collectives("ENTRY %main {\n  ROOT %add = f32[4]{0} add(f32[4]{0} %a, f32[4]{0} %b)\n}") == {}


def test_collectives_tuple_is_one_collective():
    hlo = (
        "  ROOT %all-reduce = (f32[64]{0:T(128)}, bf16[3,3,2,8]{3,2,1,0:T(8,128)(2,1)}, /*index=2*/pred[8]{0}) "
        "all-reduce(%a, %b, %c), channel_id=3, to_apply=%add"
    )
    assert collectives(hlo) == {"all-reduce": Traffic(1, 64 * 4 + 144 * 2 + 8)}


def test_collectives_add_by_kind():
    hlo = "\n".join([REDUCE, REDUCE.replace("64,3", "2"), "  %g = u8[16]{0} all-gather(u8[2]{0} %x), dimensions={0}"])
    assert collectives(hlo) == {"all-reduce": Traffic(2, 64 * 3 * 4 + 8), "all-gather": Traffic(1, 16)}


@pytest.mark.parametrize(
    ("kind", "start", "expected"),
    [
        ("all-reduce", "f32[10]{0}", 40),
        ("all-reduce", "(f32[10]{0}, f32[2]{0})", 48),
        ("all-gather", "(f32[2]{0}, f32[8]{0})", 32),
        ("all-gather", "((f32[2,3]{1,0}, f32[1]{0}), (f32[8,3]{1,0}, f32[4]{0}))", 112),
        ("collective-permute", "(bf16[5]{0}, bf16[5]{0}, u32[]{:S(2)}, u32[]{:S(2)})", 10),
        ("reduce-scatter", "((f32[8]{0}), f32[2]{0})", 8),
    ],
)
def test_collectives_asynchronous_pair_counts_its_result_once(kind, start, expected):
    hlo = (
        f"  %{kind}-start.1 = {start} {kind}-start(f32[2]{{0}} %x), channel_id=1\n"
        f"  %{kind}-done.1 = f32[2]{{0}} {kind}-done({start} %{kind}-start.1)\n"
    )
    assert collectives(hlo) == {kind: Traffic(1, expected)}


def test_collectives_ignore_other_uses_of_their_names():
    hlo = (
        "  %fusion.3 = f32[4]{0} fusion(f32[4]{0} %all-reduce.1), kind=kLoop, calls=%fused_all-reduce\n"
        '  %m = f32[4]{0} multiply(%all-reduce.1, %c), metadata={op_name="jit(step)/all-reduce(x)"}\n'
        "%all-reduce-region (a: f32[], b: f32[]) -> f32[] {\n"
    )
    assert collectives(hlo) == {}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("f32[]", 4), ("f8e4m3fn[7]", 7), ("s4[3]", 2), ("c64[2]", 16), ("f64[0,5]", 0), ("()", 0)],
)
def test_shape_bytes(shape, expected):
    assert shape_bytes(shape) == expected
