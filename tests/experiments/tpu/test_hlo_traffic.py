"""Bytes through HBM of programs small enough to count by hand: f32[8,128] is 4096 bytes."""

import jax
import jax.numpy as jnp
import pytest

from experiments.tpu.hlo_traffic import array_bytes, estimated_cycles, hbm_traffic

A = "f32[8,128]{1,0:T(8,128)}"
V = "f32[8,128]{1,0:T(8,128)S(1)}"  # in VMEM
BLOCK = 8 * 128 * 4


def program(body: str, *computations: str) -> str:
    return "\n".join([*computations, "ENTRY %main (x: f32[8,128]) -> f32[8,128] {", body, "}\n"])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[3,200]{1,0:T(8,128)}", 8 * 256 * 4),
        ("bf16[2,5,64]{2,0,1:T(2,128)(2,1)}", 5 * 2 * 128 * 2),
        ("f32[100]{0:T(128)}", 128 * 4),
        ("pred[9]{0:T(128)S(1)}", 0),
        ("(u8[4,2]{1,0:T(8,128)(4,1)}, s32[]{:S(2)})", 8 * 128),
        ("f32[3,5]{1,0}", 60),
        ("bf16[]", 2),
    ],
)
def test_array_bytes_pads_to_tiles_and_leaves_out_vmem(shape, expected):
    assert array_bytes(shape) == expected


def test_hbm_traffic_reads_operands_and_writes_results_outside_vmem():
    hlo = program(
        f"  %x = {A} parameter(0)\n  %y = {V} negate(%x)\n  %z = {A} add(%y, %x)\n  ROOT %t = ({A}) tuple(%z)"
    )
    assert hbm_traffic(hlo) == (1 + 0) * BLOCK + (1 + 1) * BLOCK


def test_hbm_traffic_of_allocations_and_adjacent_slices_is_zero():
    hlo = program(
        f'  %x = {A} custom-call(), custom_call_target="AllocateBuffer"\n'
        f'  ROOT %y = {A} custom-call(%x, %x), custom_call_target="ConcatBitcast"'
    )
    assert hbm_traffic(hlo) == 0


def test_hbm_traffic_asynchronous_copy_counts_once():
    hlo = program(
        f"  %x = {A} parameter(0)\n  %c = ({V}, {A}, u32[]{{:S(2)}}) copy-start(%x)\n  ROOT %d = {V} copy-done(%c)"
    )
    assert hbm_traffic(hlo) == BLOCK


def test_hbm_traffic_reads_only_the_slice():
    part = "f32[1,128]{1,0:T(1,128)S(1)}"
    hlo = program(
        f"  %x = {A} parameter(0)\n"
        f"  %s = {part} slice(%x), slice={{[0:1], [0:128]}}\n"
        f"  %a = (({A}), {part}, s32[]{{:S(2)}}) slice-start(%x), slice={{[1:2], [0:128]}}\n"
        f"  ROOT %d = {part} slice-done(%a)"
    )
    assert hbm_traffic(hlo) == 2 * 128 * 4


def test_hbm_traffic_fusion_reads_slices_and_updates_in_place():
    fused = (
        f"%f (p: f32[8,128], q: f32[8,128]) -> f32[8,128] {{\n"
        f"  %p = {A} parameter(0)\n"
        f"  %q = {A} parameter(1)\n"
        f"  %s = f32[2,128]{{1,0:T(2,128)}} slice(%q), slice={{[0:2], [0:128]}}\n"
        f"  %n = f32[2,128]{{1,0:T(2,128)}} negate(%s)\n"
        f"  %i = s32[]{{:T(128)}} constant(0)\n"
        f"  ROOT %u = {A} dynamic-update-slice(%p, %n, %i, %i)\n}}"
    )
    hlo = program(
        f"  %x = {A} parameter(0)\n  %y = {A} parameter(1)\n  ROOT %r = {A} fusion(%x, %y), kind=kLoop, calls=%f", fused
    )
    assert hbm_traffic(hlo) == (2 + 2) * 128 * 4


def test_hbm_traffic_fused_value_is_read_once():
    fused = (
        f"%f (p: f32[8,128]) -> f32[8,128] {{\n"
        f"  %p = {A} parameter(0)\n"
        f"  %s = f32[4,128]{{1,0:T(4,128)}} slice(%p), slice={{[0:4], [0:128]}}\n"
        f"  %w = {A} pad(%s, %p), padding=0_4x0_0\n"
        f"  ROOT %u = {A} add(%p, %w)\n}}"
    )
    assert hbm_traffic(program(f"  %x = {A} parameter(0)\n  ROOT %r = {A} fusion(%x), calls=%f", fused)) == 2 * BLOCK


def test_hbm_traffic_negative_padding_of_a_convolution_in_a_nested_fusion():
    image = "f32[1,8,16,128]{3,2,1,0:T(8,128)}"
    inner = (
        f"%g (p: f32[1,8,16,128]) -> f32[1,8,16,128] {{\n"
        f"  %p = {image} parameter(0)\n"
        f"  ROOT %n = {image} negate(%p)\n}}"
    )
    fused = (
        f"%f (p: f32[1,8,16,128], k: f32[1,1,128,128]) -> f32[1,8,1,128] {{\n"
        f"  %p = {image} parameter(0)\n"
        f"  %k = f32[1,1,128,128]{{3,2,1,0:T(8,128)S(1)}} parameter(1)\n"
        f"  %m = {image} fusion(%p), kind=kLoop, calls=%g\n"
        f"  ROOT %c = f32[1,8,1,128]{{3,2,1,0:T(1,128)}} convolution(%m, %k), window={{size=1x1 pad=0_0x-15_0}}, "
        f"dim_labels=b01f_01io->b01f\n}}"
    )
    hlo = program(
        f"  %x = {image} parameter(0)\n"
        f"  %k = f32[1,1,128,128]{{3,2,1,0:T(8,128)S(1)}} parameter(1)\n"
        f"  ROOT %r = f32[1,8,1,128]{{3,2,1,0:T(1,128)}} fusion(%x, %k), kind=kOutput, calls=%f",
        inner,
        fused,
    )
    assert hbm_traffic(hlo) == 8 * 16 * 128 * 4 // 16 + 8 * 128 * 4


def test_hbm_traffic_loop_body_and_branches_count_once():
    body = f"%b (p: f32[8,128]) -> f32[8,128] {{\n  %p = {A} parameter(0)\n  ROOT %n = {A} negate(%p)\n}}"
    other = body.replace("%b ", "%e ")
    hlo = program(
        f"  %x = {A} parameter(0)\n"
        f"  %w = {A} while(%x), condition=%c, body=%b\n"
        f"  %i = s32[]{{:T(128)S(6)}} constant(0)\n"
        f"  ROOT %k = {A} conditional(%i, %w, %w), branch_computations={{%b, %e}}",
        body,
        other,
    )
    assert hbm_traffic(hlo) == 3 * 2 * BLOCK


def test_estimated_cycles_leave_out_fused_instructions():
    cycles = ', backend_config={"estimated_cycles":"7"}'
    fused = f"%fused (x: f32[8,128]) -> f32[8,128] {{\n  %x = {A} parameter(0)\n  ROOT %y = {A} negate(%x){cycles}\n}}"
    body = fused.replace("%fused", "%body")
    hlo = program(
        f"  %x = {A} parameter(0)\n  %y = {A} fusion(%x), calls=%fused{cycles}\n  ROOT %z = {A} while(%y), body=%body",
        fused,
        body,
    )
    assert estimated_cycles(hlo) == 7 + 7
    assert estimated_cycles(program(f"  ROOT %x = {A} parameter(0)")) is None


def test_hbm_traffic_fusion_with_several_results():
    fused = (
        f"%f (p: f32[8,128]) -> (f32[128], f32[128]) {{\n"
        f"  %p = {A} parameter(0)\n"
        f"  %i = f32[]{{:T(128)S(6)}} constant(0)\n"
        f"  ROOT %r = (f32[128]{{0:T(128)}}, f32[128]{{0:T(128)}}) reduce(%p, %p, %i, %i), dimensions={{0}}\n}}"
    )
    shape = "(f32[128]{0:T(128)}, f32[128]{0:T(128)S(1)})"
    hlo = program(f"  %x = {A} parameter(0)\n  ROOT %r = {shape} fusion(%x), kind=kInput, calls=%f", fused)
    assert hbm_traffic(hlo) == BLOCK + 128 * 4


def test_hbm_traffic_of_a_cpu_program():
    x = jnp.ones((64, 1024))
    hlo = jax.jit(lambda x: jnp.sin(x) + 1).lower(x).compile().as_text()
    assert hbm_traffic(hlo) == 2 * x.nbytes
