"""The fused inner block, forward: words [M * C, L] -> [M * C, L] in one kernel, a tile of 1,024 sentences at a time."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from tnt_jax.models.fast.pallas.attention import attend
from tnt_jax.models.fast.pallas.layout import LANES, PITCH, SUBLANES, TILE, Index, Sizes
from tnt_jax.models.fast.pallas.tiles import (
    dot,
    gather,
    gelu_twice,
    mask_padding,
    normalise_in_place,
    software_pipelined,
    spread,
    whole,
    with_bias_rows,
)

CHUNK = 4  # groups of 128 lanes whose hidden channels are held in registers at once


def rows_of(index: Index, height: int) -> pl.Slice:
    """Returns the rows of group `index`, of `height` rows, in a block [M * C, 1024]."""
    return pl.ds(pl.multiple_of(index * height, height), height)


def load_words(index: Index, words: jax.Ref, registers: jax.Ref, sizes: Sizes) -> None:
    """Group `index` of words ref [M * C, 1024] -> registers ref."""
    height = sizes.group * sizes.inner_dim
    spread(registers, index * height, words[rows_of(index, height), :].astype(jnp.float32))


def project_qkv(
    index: Index, registers: jax.Ref, qkv: tuple[jax.Ref, ...], a_qkv: jax.Ref, sizes: Sizes, dtype: DTypeLike
) -> jax.Array:
    """Writes q, k, v of unit `index` of normalised words to three refs; returns the product's operand."""
    height = sizes.unit * sizes.inner_dim
    rows = with_bias_rows(gather(registers, index * height, height), dtype)
    total = dot(a_qkv[...], rows)
    for part, ref in enumerate(qkv):
        spread(ref, index * height, total[part * height : (part + 1) * height])
    return rows


def project_attended(
    index: Index, words: jax.Ref, rows: jax.Array, masks: jax.Ref, a_o: jax.Ref, b_o: jax.Ref, sizes: Sizes
) -> jax.Array:
    """Group `index`: words + masks * (output projection of rows [group * C, 1024]) -> [group * C, 1024] float32."""
    height, unit = sizes.group * sizes.inner_dim, sizes.unit * sizes.inner_dim
    parts = [dot(a_o[...], rows[at : at + unit]) + b_o[...] for at in range(0, height, unit)]
    before = words[rows_of(index, height), :].astype(jnp.float32)
    return before + masks[0:1, :] * jnp.concatenate(parts, axis=0)


def mlp(
    index: Index,
    registers: jax.Ref,
    middle: jax.Ref,
    masks: jax.Ref,
    out: jax.Ref,
    a_1: jax.Ref,
    a_2: jax.Ref,
    b_2: jax.Ref,
    sizes: Sizes,
    dtype: DTypeLike,
) -> None:
    """Group `index`: out = middle + masks * MLP(normalised words), a few lanes at a time."""
    height, unit = sizes.group * sizes.inner_dim, sizes.unit * sizes.inner_dim
    slots = [(first, at) for first in range(0, SUBLANES, CHUNK) for at in range(0, height, unit)]

    def first_layer(slot):
        first, at = slot
        rows = with_bias_rows(gather(registers, index * height + at, unit, (first, first + CHUNK)), dtype)
        return dot(a_1[...], rows)

    ahead, parts = first_layer(slots[0]), []
    for slot, following in zip(slots, slots[1:] + [None], strict=True):
        hidden, ahead = ahead, first_layer(following) if following else None
        parts.append(dot(a_2[...], gelu_twice(hidden, dtype).astype(dtype)) + b_2[...])
        if slot[1] + unit == height:
            lanes = slice(slot[0] * LANES, (slot[0] + CHUNK) * LANES)
            total = middle[rows_of(index, height), lanes] + masks[1:2, lanes] * jnp.concatenate(parts, axis=0)
            out[rows_of(index, height), lanes] = total.astype(dtype)
            parts = []


def _kernel(words, masks, a_qkv, a_o, b_o, a_1, a_2, b_2, out, *rest, sizes, sentences):
    attended, lse = rest[:2] if len(rest) == 7 else (None, None)
    registers, query, key, value, middle = rest[-5:]
    dtype, groups = words.dtype, sizes.num_words // sizes.group
    mask_padding(sentences, words)

    def prepare(index):
        load_words(index, words, registers, sizes)
        for w in range(sizes.group):
            normalise_in_place(registers, None, index * sizes.group + w, sizes)

    def project(index):
        for u in range(sizes.group // sizes.unit):
            project_qkv(index * (sizes.group // sizes.unit) + u, registers, (query, key, value), a_qkv, sizes, dtype)

    software_pipelined(groups, prepare, project)

    @pl.loop(0, sizes.num_words * sizes.num_heads)
    def _(step):
        attend(step, query, key, value, lse, sizes)

    def join(index):
        height = sizes.group * sizes.inner_dim
        rows = gather(query, index * height, height).astype(dtype)
        if attended is not None:
            attended[rows_of(index, height), :] = rows
        total = project_attended(index, words, rows, masks, a_o, b_o, sizes)
        middle[rows_of(index, height), :] = total
        spread(registers, index * height, total)
        for w in range(sizes.group):
            normalise_in_place(registers, None, index * sizes.group + w, sizes)

    software_pipelined(
        groups, join, lambda index: mlp(index, registers, middle, masks, out, a_1, a_2, b_2, sizes, dtype)
    )


def forward(
    words: jax.Array, masks: jax.Array, matrices: tuple[jax.Array, ...], sizes: Sizes, save: bool
) -> list[jax.Array]:
    """words [M * C, L], masks [2, L] float32 -> [out [M * C, L]] and, with `save`, what the backward pass needs.

    That is the attention's output [M * C, L] and log2 of the softmax denominators [M * heads, 8 * tiles, 128] float32.
    """
    tiles = -(-words.shape[1] // TILE)
    block = pl.BlockSpec((sizes.rows, TILE), lambda i: (0, i))
    shapes, specs = [jax.ShapeDtypeStruct(words.shape, words.dtype)], [block]
    if save:
        scores = sizes.num_words * sizes.num_heads
        shapes += [shapes[0], jax.ShapeDtypeStruct((scores, tiles * SUBLANES, LANES), jnp.float32)]
        specs += [block, pl.BlockSpec((scores, SUBLANES, LANES), lambda i: (0, i, 0))]
    return pl.pallas_call(
        functools.partial(_kernel, sizes=sizes, sentences=words.shape[1]),
        grid=(tiles,),
        in_specs=[block, pl.BlockSpec((2, TILE), lambda i: (0, i))] + [whole(m) for m in matrices],
        out_specs=specs,
        out_shape=shapes,
        scratch_shapes=[
            pltpu.VMEM((sizes.rows * PITCH, LANES), jnp.float32),
            *[pltpu.VMEM((sizes.rows * PITCH, LANES), jnp.float32) for _ in range(3)],
            pltpu.VMEM((sizes.rows, TILE), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=sizes.vector_memory(words.dtype.itemsize)),
        interpret=sizes.interpret,
    )(words, masks, *matrices)
