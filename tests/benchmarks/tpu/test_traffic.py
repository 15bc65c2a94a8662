"""Bytes that operations move: slices and updates in place, fusions, asynchronous copies."""

import pytest

from benchmarks.tpu.traffic import array_bytes, traffic
from tests.tools.tpu.test_hlo import BLOCK, TEXT
from tnt_jax.tools.tpu.hlo import Program


def touched_by(text):
    program = Program(text)
    return {each.instruction.name: traffic(program, each) for each in program.operations()}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 4 * 1024),
        ("bf16[3136,16,24]{2,1,0:T(8,128)(2,1)}", 2 * 3136 * 16 * 128),  # 24 channels take a row of 128
        ("bf16[3136,16,24]{0,2,1:T(8,128)(2,1)}", 2 * 16 * 24 * 3200),  # sentences on the lanes
        ("f32[5]{0:T(128)}", 20),
        ("(f32[8,128]{1,0:T(8,128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, pred[])", 4 * 1024 + 1),  # S(1): on-chip
        ("token[]", 0),
    ],
)
def test_bytes_are_padded_to_tiles(shape, size):
    assert array_bytes(shape) == size


def test_slices_and_updates_in_place_touch_one_block_of_the_stack():
    touched = touched_by(TEXT)
    assert touched["mine"] == 2 * BLOCK + 4  # one block read, one written, and the loop index
    assert touched["stacked"] == 2 * BLOCK + 4


def test_slices_inside_a_fusion_inside_a_fusion():
    """XLA fuses the slice of a saved activation into a matrix product; the whole stack is not read."""
    nested = """%outer (a: f32[3,8,128], b: s32[]) -> f32[8,128] {
  %a = f32[3,8,128]{2,1,0:T(8,128)} parameter(0)
  %b = s32[]{:T(128)} parameter(1)
  ROOT %call = f32[8,128]{1,0:T(8,128)} fusion(%a, %b), kind=kLoop, calls=%slice_it
}

%body ("""
    text = TEXT.replace("%body (", nested, 1).replace(
        "kind=kLoop, calls=%slice_it, metadata", "kind=kOutput, calls=%outer, metadata"
    )
    touched = touched_by(text)
    assert touched["mine"] == 2 * BLOCK + 4
    nested = nested.replace("%outer", "%put_it").replace("slice_it", "keep_it").replace("%a, %b)", "%a, %c, %b)")
    nested = nested.replace("-> f32[8,128]", "-> f32[3,8,128]").replace(
        "ROOT %call = f32[8,128]{1,0", "ROOT %call = f32[3,8,128]{2,1,0"
    )
    nested = nested.replace(
        "  %b = s32[]{:T(128)} parameter(1)",
        "  %c = f32[8,128]{1,0:T(8,128)} parameter(1)\n  %b = s32[]{:T(128)} parameter(2)",
    )
    text = TEXT.replace("%body (", nested, 1).replace(
        "kind=kLoop, calls=%keep_it, backend", "kind=kLoop, calls=%put_it, backend"
    )
    assert touched_by(text)["stacked"] == 2 * BLOCK + 4


def test_an_asynchronous_copy_onto_the_chip_reads_the_memory_alone():
    assert touched_by(TEXT)["moving"] == 3 * BLOCK
