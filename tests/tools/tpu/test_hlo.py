# ruff: noqa: E501 (the text of a compiled program has long lines)
"""The text of a compiled program: operations, loop trip counts, bytes; their costs and parts of the model."""

import re

import jax
import jax.numpy as jnp
import pytest

from tnt_jax.tools.tpu.chips import CHIPS
from tnt_jax.tools.tpu.costs import array_bytes, estimate, part_of
from tnt_jax.tools.tpu.hlo import Program

# As libtpu writes it: a scan over 3 blocks whose stacked parameters are sliced in a fusion and whose activations are
# written into a stack in place; a buffer, an asynchronous copy, a sum over chips.
TEXT = """HloModule jit_step

%slice_it (stack: f32[3,8,128], at: s32[]) -> f32[8,128] {
  %stack = f32[3,8,128]{2,1,0:T(8,128)} parameter(0)
  %at = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %cut = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%stack, %at, %zero, %zero), dynamic_slice_sizes={1,8,128}
  ROOT %flat = f32[8,128]{1,0:T(8,128)} bitcast(%cut)
}

%keep_it (kept: f32[3,8,128], new: f32[8,128], at: s32[]) -> f32[3,8,128] {
  %kept = f32[3,8,128]{2,1,0:T(8,128)} parameter(0)
  %new = f32[8,128]{1,0:T(8,128)} parameter(1)
  %at = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %one = f32[1,8,128]{2,1,0:T(8,128)} bitcast(%new), metadata={op_name="jit(f)/TNT/TNT._scanned/while/body/stack"}
  ROOT %put = f32[3,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%kept, %one, %at, %zero, %zero)
}

%body (carry: (s32[], f32[8,128], f32[3,8,128])) -> (s32[], f32[8,128], f32[3,8,128]) {
  %carry = (s32[]{:T(128)}, f32[3,8,128]{2,1,0:T(8,128)}, f32[3,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %weights = f32[3,8,128]{2,1,0:T(8,128)} get-tuple-element(%carry), index=1
  %saved = f32[3,8,128]{2,1,0:T(8,128)} get-tuple-element(%carry), index=2
  %mine = f32[8,128]{1,0:T(8,128)} fusion(%weights, %i), kind=kLoop, calls=%slice_it, metadata={op_name="jit(f)/jvp(TNT)/TNT._scanned/while/body/TNTBlock/vmap(inner)/mul"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %stacked = f32[3,8,128]{2,1,0:T(8,128)} fusion(%saved, %mine, %i), kind=kLoop, calls=%keep_it, backend_config={"window_config":{"estimated_cycles":"40"}}
  ROOT %next = (s32[]{:T(128)}, f32[3,8,128]{2,1,0:T(8,128)}, f32[3,8,128]{2,1,0:T(8,128)}) tuple(%i, %weights, %stacked)
}

%condition (carry: (s32[], f32[8,128], f32[3,8,128])) -> pred[] {
  %carry = (s32[]{:T(128)}, f32[3,8,128]{2,1,0:T(8,128)}, f32[3,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (weights: f32[3,8,128]) -> f32[24] {
  %weights = f32[3,8,128]{2,1,0:T(8,128)} parameter(0)
  %buffer = f32[3,8,128]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[3,8,128]{2,1,0:T(8,128)}, f32[3,8,128]{2,1,0:T(8,128)}) tuple(%zero, %weights, %buffer)
  %loop = (s32[]{:T(128)}, f32[3,8,128]{2,1,0:T(8,128)}, f32[3,8,128]{2,1,0:T(8,128)}) while(%start), condition=%condition, body=%body
  %all = f32[3,8,128]{2,1,0:T(8,128)} get-tuple-element(%loop), index=2
  %moving = (f32[3,8,128]{2,1,0:T(8,128)S(1)}, f32[3,8,128]{2,1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%all)
  %moved = f32[3,8,128]{2,1,0:T(8,128)S(1)} copy-done(%moving)
  ROOT %sum = f32[24]{0:T(128)} all-reduce(%moved), to_apply=%add, metadata={op_name="jit(f)/psum"}
}
"""
BLOCK = 8 * 128 * 4  # bytes


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 4 * 1024),
        ("(bf16[3136,16,24]{2,1,0:T(8,128)(2,1)}, s8[5])", 2 * 3136 * 16 * 24 + 5),
        ("f32[]", 4),
        ("token[]", 0),
    ],
)
def test_bytes_of_arrays(shape, size):
    assert array_bytes(shape) == size


def test_loops_bodies_count_as_often_as_they_run():
    operations = {each.instruction.name: each for each in Program(TEXT).operations()}
    assert {name: each.trips for name, each in operations.items()} == {"mine": 3, "stacked": 3, "moving": 1, "sum": 1}


def test_costs_by_part_without_what_runs_in_the_background():
    chip = CHIPS["v5e"]
    found = estimate(TEXT, chip, device_count=4)
    costs = {each.name: each for each in found.operations}
    assert set(costs) == {"mine", "stacked", "sum"}  # the copy is asynchronous
    assert costs["mine"].part == "inner" and costs["mine"].cycles == 300
    assert costs["stacked"].part == "scan"  # it has no scope of its own; an operation fused into it has one
    exchanged = 2 * 3 / 4 * 24 * 4 / chip.interconnect_bandwidth * chip.clock
    assert costs["sum"].part == "all-reduce" and costs["sum"].cycles == pytest.approx(exchanged)
    assert found.cycles == pytest.approx(300 + 120 + exchanged) and not found.uncounted_loops
    assert found.by_part() == {"inner": 300, "scan": 120, "all-reduce": costs["sum"].cycles}
    assert [each.name for each in found.top(2)] == ["mine", "stacked"]


def test_a_kernel_costs_nothing_that_is_known_and_is_counted():
    kernel = '%moved = f32[3,8,128]{2,1,0:T(8,128)} custom-call(%all), custom_call_target="tpu_custom_call"'
    found = estimate(re.sub("%moved = .*", kernel, TEXT), CHIPS["v5e"])
    assert found.unknown_kernels == 1 and found.cycles == 420


def test_a_kernels_metadata_on_several_lines_hides_nothing():
    """As in jax's splash attention: operations after such lines are still counted."""
    metadata = 'frontend_attributes={kernel_metadata={\n"xprof_metadata":"{}"\n}}, metadata={op_name="jit(f)/outer"}'
    kernel = (
        f'%moved = f32[3,8,128]{{2,1,0:T(8,128)}} custom-call(%all), custom_call_target="tpu_custom_call", {metadata}'
    )
    text = re.sub("%moved = .*", lambda _: kernel, TEXT)
    operations = {each.instruction.name: each for each in Program(text).operations()}
    assert operations["moved"].instruction.source == "jit(f)/outer" and "sum" in operations


def test_a_loop_that_decides_its_end_itself_is_named():
    text = TEXT.replace("direction=LT", "direction=NE")
    found = estimate(text, CHIPS["v5e"])
    assert found.uncounted_loops == ["loop"]
    assert next(each for each in found.operations if each.name == "mine").trips == 1


def test_a_faster_memory_and_clock_change_the_cost():
    slow, fast = (CHIPS[name].hbm_bandwidth / CHIPS[name].clock for name in ("v5e", "v5p"))
    assert slow == pytest.approx(546, rel=3e-3) and fast == pytest.approx(1580, rel=1e-2)
    assert CHIPS["v4"].clock == pytest.approx(1.05e9, rel=2e-3) and CHIPS["v5e"].clock == pytest.approx(1.5e9, rel=3e-3)


def test_real_text_of_this_jax_is_understood():
    """On the CPU: a loop of 5 iterations and the operations in it."""

    def step(x):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), c.sum()), x, jnp.ones((5, 16, 16)))

    text = jax.jit(step).lower(jnp.ones((4, 16))).compile().as_text()
    operations = Program(text).operations()
    assert 5 in {each.trips for each in operations}
    assert any("dot" in each.instruction.line and each.trips == 5 for each in operations)


def test_a_text_that_is_none():
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("")


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("jit(f)/transpose(jvp(TNT))/TNT.embed/word_embedding/transpose", "word_embedding"),
        ("jit(f)/jvp(TNT)/while/body/closed_call/TNTBlock/vmap(inner)/attention/mul", "inner"),
        ("jit(f)/jvp(TNT)/while/body/closed_call/TNTBlock/inner/pallas_call", "inner"),
        ("jit(f)/jvp(TNT)/block_3/inner/pallas_call", "inner"),
        ("jit(f)/jvp(TNT)/block_3/projection/norm1/mul", "projection"),
        ("jit(f)/jvp(TNT)/block_3/add", "residuals"),
        ("jit(f)/transpose(jvp(TNT))/block_12/outer/mlp/dense1/dot_general", "outer"),
        ("jit(f)/jvp(TNT)/norm/mul", "norm"),
        ("jit(f)/jvp(TNT)/head/add", "head"),
        ("jit(f)/jvp(loss)/log", "loss"),
        ("jit(f)/optimizer/mul", "optimizer"),
        ("jit(f)/input/jit(_normal)/mul", "input"),
        ("jit(f)/psum", "all-reduce"),
        ("jit(f)/jvp(TNT)/while/body/drop_path/jit(_bernoulli)/lt", "drop path"),
        ("jit(f)/jvp(TNT)/while/body/dynamic_update_slice", "scan"),
        ("jit(f)/jit(_threefry_fold_in)/add", "other"),
        ("", "other"),
    ],
)
def test_parts_by_scope(source, part):
    assert part_of([source]) == part
