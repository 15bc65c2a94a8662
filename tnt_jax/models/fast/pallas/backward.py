"""The fused inner block, backward: what the forward pass saved -> gradients of the words and of every matrix.

The words, the attention's output and the softmax denominators are saved; norms, q, k, v, the residual stream between
attention and MLP, and the hidden channels are recomputed, which costs less than their memory traffic. Gradients of
matrices [inputs, outputs] are summed in float32 over words, sentences and grid steps.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from tnt_jax.models.fast.pallas.attention import attend_backward, queries_a_step
from tnt_jax.models.fast.pallas.forward import load_words, project_attended, project_qkv, rows_of
from tnt_jax.models.fast.pallas.layout import BIAS_ROWS, LANES, PITCH, SUBLANES, TILE, Index, Sizes
from tnt_jax.models.fast.pallas.tiles import (
    dot,
    gather,
    gelu_twice_and_slope,
    mask_padding,
    normalise_backward,
    normalise_in_place,
    software_pipelined,
    spread,
    store_registers,
    whole,
    with_bias_rows,
)

CHUNK = 2  # groups of 128 lanes whose hidden channels are held in registers at once
OUTER = (1, 1)  # contraction over the lanes of both operands: the gradient of a matrix


def mlp_backward(
    index: Index,
    cotangent: jax.Ref,
    masks: jax.Ref,
    normalised: jax.Ref,
    cotangent_in: jax.Ref,
    matrices: tuple[jax.Ref, ...],
    totals: tuple[jax.Ref, ...],
    sizes: Sizes,
    dtype: DTypeLike,
) -> None:
    """Group `index`: ref `cotangent` [M * C, 1024] of the block's output -> ref `cotangent_in` of normalised words."""
    a_1, t_1, t_2 = matrices
    d_1, d_2, d_b2 = totals
    height, unit = sizes.group * sizes.inner_dim, sizes.unit * sizes.inner_dim
    given = cotangent[rows_of(index, height), :].astype(jnp.float32) * masks[1:2, :]
    slots = [(at, first) for at in range(0, height, unit) for first in range(0, SUBLANES, CHUNK)]

    def products(slot):
        at, first = slot
        rows = with_bias_rows(gather(normalised, index * height + at, unit, (first, first + CHUNK)), dtype)
        slope = given[at : at + unit, first * LANES : (first + CHUNK) * LANES]
        narrow = slope.astype(dtype)
        return rows, slope, narrow, dot(a_1[...], rows), dot(t_2[...], narrow)

    ahead, sums, below = products(slots[0]), [None, None, None], []
    for slot, following in zip(slots, slots[1:] + [None], strict=True):
        rows, slope, narrow, before, after = ahead
        ahead = products(following) if following else None  # the matrix unit runs ahead of the vector unit
        hidden, steep = gelu_twice_and_slope(before, dtype)
        hidden, steep = hidden.astype(dtype), (steep * after).astype(dtype)
        below.append(dot(t_1[...], steep))
        bias = functools.reduce(jnp.add, [slope[:, j * LANES : (j + 1) * LANES] for j in range(CHUNK)])
        terms = [dot(rows, steep, OUTER), dot(narrow, hidden, OUTER), bias]
        sums = [b if a is None else a + b for a, b in zip(sums, terms, strict=True)]
        if slot[1] + CHUNK == SUBLANES:
            spread(cotangent_in, index * height + slot[0], jnp.concatenate(below, axis=1))
            below = []
    for ref, value in zip((d_1, d_2, d_b2), sums, strict=True):
        ref[...] += value


def output_backward(
    index: Index,
    cotangent: jax.Ref,
    cotangent_in: jax.Ref,
    masks: jax.Ref,
    attended: jax.Ref,
    output: jax.Ref,
    middle: jax.Ref,
    matrices: tuple[jax.Ref, ...],
    totals: tuple[jax.Ref, ...],
    sizes: Sizes,
    dtype: DTypeLike,
) -> None:
    """Group `index`: residual gradient, the MLP's included -> ref `middle`; the attention output's -> ref `output`."""
    (t_o,), (d_o, d_bo) = matrices, totals
    height, unit = sizes.group * sizes.inner_dim, sizes.unit * sizes.inner_dim
    total = cotangent[rows_of(index, height), :].astype(jnp.float32) + gather(cotangent_in, index * height, height)
    middle[rows_of(index, height), :] = total
    given = total * masks[0:1, :]
    saved = attended[rows_of(index, height), :].astype(jnp.float32)
    for at in range(0, height, unit):
        slope = given[at : at + unit]
        narrow = slope.astype(dtype)
        spread(output, index * height + at, dot(t_o[...], narrow))
        d_o[...] += dot(saved[at : at + unit].astype(dtype), narrow, OUTER)
        d_bo[...] += functools.reduce(jnp.add, [slope[:, j * LANES : (j + 1) * LANES] for j in range(SUBLANES)])


def qkv_backward(
    index: Index,
    parts: tuple[jax.Ref, ...],
    operand: jax.Ref,
    cotangent_in: jax.Ref,
    t_qkv: jax.Ref,
    d_qkv: jax.Ref,
    sizes: Sizes,
    dtype: DTypeLike,
) -> None:
    """Unit `index`: gradients of q, k, v -> of the normalised words, ref `cotangent_in`."""
    height = sizes.unit * sizes.inner_dim
    given = jnp.concatenate([gather(part, index * height, height) for part in parts], axis=0).astype(dtype)
    spread(cotangent_in, index * height, dot(t_qkv[...], given))
    d_qkv[...] += dot(operand[index], given, OUTER)


def _kernel(
    words, cotangent, attended, lse, masks, a_qkv, a_o, b_o, a_1, t_qkv, t_o, t_1, t_2, *rest, sizes, sentences
):
    lower_words, d_qkv, d_o, d_bo, d_1, d_2, d_b2 = rest[:7]
    first, second, cotangent_in, output, query, key, value, d_key, d_value, middle, operand, inverse_1, inverse_2 = (
        rest[7:]
    )
    dtype, groups, units = words.dtype, sizes.num_words // sizes.group, sizes.group // sizes.unit
    height = sizes.group * sizes.inner_dim
    mask_padding(sentences, words, cotangent, attended, masks)

    @pl.when(pl.program_id(0) == 0)
    def _():
        for ref in rest[1:7]:
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    def prepare(index):
        load_words(index, words, first, sizes)
        for w in range(sizes.group):
            normalise_in_place(first, inverse_1, index * sizes.group + w, sizes)

    def project(index):
        for u in range(units):
            at = index * units + u
            operand[at] = project_qkv(at, first, (query, key, value), a_qkv, sizes, dtype)

    software_pipelined(groups, prepare, project)

    def join(index):
        rows = attended[rows_of(index, height), :]
        spread(second, index * height, project_attended(index, words, rows, masks, a_o, b_o, sizes))
        for w in range(sizes.group):
            normalise_in_place(second, inverse_2, index * sizes.group + w, sizes)

    def through_mlp(index):
        mlp_backward(index, cotangent, masks, second, cotangent_in, (a_1, t_1, t_2), (d_1, d_2, d_b2), sizes, dtype)
        for ref in (d_key, d_value):  # the attention's backward pass adds to these
            store_registers(ref, index * height, jnp.zeros((height, SUBLANES, LANES), jnp.float32))

    def through_output(index):
        for w in range(sizes.group):
            normalise_backward(cotangent_in, second, inverse_2, index * sizes.group + w, sizes)
        output_backward(
            index, cotangent, cotangent_in, masks, attended, output, middle, (t_o,), (d_o, d_bo), sizes, dtype
        )

    software_pipelined(groups, join, through_mlp, through_output)

    @pl.loop(0, sizes.num_words * sizes.num_heads // queries_a_step(sizes))
    def _(step):
        attend_backward(step, query, key, value, lse, output, d_key, d_value, sizes)

    def through_qkv(index):
        for u in range(units):
            qkv_backward(index * units + u, (query, d_key, d_value), operand, cotangent_in, t_qkv, d_qkv, sizes, dtype)

    def finish(index):
        for w in range(sizes.group):
            normalise_backward(cotangent_in, first, inverse_1, index * sizes.group + w, sizes)
        total = middle[rows_of(index, height), :] + gather(cotangent_in, index * height, height)
        lower_words[rows_of(index, height), :] = total.astype(dtype)

    software_pipelined(groups, through_qkv, finish)


def backward(
    words: jax.Array,
    cotangent: jax.Array,
    attended: jax.Array,
    lse: jax.Array,
    masks: jax.Array,
    matrices: tuple[jax.Array, ...],
    sizes: Sizes,
) -> list[jax.Array]:
    """words, cotangent of the output, attended [M * C, L], lse, masks [2, L], matrices (see `_kernel`) -> gradients.

    The gradient of the words [M * C, L], then float32 sums: d_qkv [u C + 8, 3 u C], d_o [u C, u C], d_bo [u C, 128],
    d_1 [u C + 8, u r C], d_2 [u C, u r C] (outputs first), d_b2 [u C, 128], where u is the unit of words.
    """
    tiles = -(-words.shape[1] // TILE)
    block = pl.BlockSpec((sizes.rows, TILE), lambda i: (0, i))
    scores = sizes.num_words * sizes.num_heads
    unit, hidden = sizes.unit * sizes.inner_dim, sizes.unit * sizes.hidden_dim
    shapes = [(unit + BIAS_ROWS, 3 * unit), (unit, unit), (unit, LANES)]
    shapes += [(unit + BIAS_ROWS, hidden), (unit, hidden), (unit, LANES)]
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    registers = pltpu.VMEM((sizes.rows * PITCH, LANES), jnp.float32)
    inverse = pltpu.VMEM((sizes.num_words * PITCH, LANES), jnp.float32)
    operand = pltpu.VMEM((sizes.num_words // sizes.unit, unit + BIAS_ROWS, TILE), words.dtype)
    return pl.pallas_call(
        functools.partial(_kernel, sizes=sizes, sentences=words.shape[1]),
        grid=(tiles,),
        in_specs=[block, block, block, pl.BlockSpec((scores, SUBLANES, LANES), lambda i: (0, i, 0))]
        + [pl.BlockSpec((2, TILE), lambda i: (0, i))]
        + [whole(m) for m in matrices],
        out_specs=[block] + [whole(shape) for shape in shapes],
        out_shape=[jax.ShapeDtypeStruct(words.shape, words.dtype)] + shapes,
        scratch_shapes=[registers] * 9 + [pltpu.VMEM((sizes.rows, TILE), jnp.float32), operand, inverse, inverse],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=sizes.vector_memory(words.dtype.itemsize)),
        interpret=sizes.interpret,
    )(words, cotangent, attended, lse, masks, *matrices)
