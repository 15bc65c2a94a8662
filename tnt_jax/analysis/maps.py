"""The numbers behind the paper's figures (section 3.4, appendix A.1): feature maps and attention of one image.

Outer attention over n tokens has n x n weights per head and block, too many at 1024 pixels (n = 4,097). Here those
of all blocks are averaged over the heads, some rows at a time; the class token has one row, in one block.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict

from tnt_jax.models import fast
from tnt_jax.models.config import Config
from tnt_jax.models.intermediates import forward_intermediates
from tnt_jax.models.layers import Ops, attention_weights
from tnt_jax.models.patches import grid_of
from tnt_jax.models.tnt import TNT

ROWS = 256  # queries whose attention is in memory at a time


def sentence_maps(model: TNT, variables: VariableDict, images: np.ndarray, blocks: Sequence[int]) -> np.ndarray:
    """images [1, H, W, C], 1-based blocks -> [blocks, D, rows, columns] float32: sentences after a block, by position.

    The class token is left out.
    """
    found = _intermediates(_plain(model), variables, images, tuple(block - 1 for block in blocks))
    return np.stack([np.asarray(each[0], np.float32) for each in found]).transpose(0, 3, 1, 2)


_intermediates = jax.jit(forward_intermediates, static_argnums=(0, 3))


def word_maps(model: TNT, variables: VariableDict, images: np.ndarray) -> np.ndarray:
    """images [1, H, W, C] -> [TNT blocks, H / s, W / s] float32, s the side of a word.

    Words after each block, averaged over their channels, at their positions in the image.
    """
    words = np.asarray(_words(_plain(model), variables, images))
    rows, columns = grid_of(images.shape[1:3], model.patch_size)
    side = model.patch_size // model.word_size
    cells = words.reshape(-1, rows, columns, side, side)
    return cells.transpose(0, 1, 3, 2, 4).reshape(-1, rows * side, columns * side)


@functools.partial(jax.jit, static_argnums=0)
def _words(model: TNT, variables: VariableDict, images: jax.Array) -> jax.Array:
    """-> [TNT blocks, N, M]: means over the channels."""
    _, features = model.apply(variables, images, return_features=("words",))
    return jnp.stack([words[0].astype(jnp.float32).mean(-1) for words in features["words"]])


def inner_attention(
    model: TNT, variables: VariableDict, images: np.ndarray, queries: Sequence[tuple[int, int]], blocks: Sequence[int]
) -> np.ndarray:
    """images [1, H, W, C], queries (sentence, word) from 0, 1-based TNT blocks -> [queries, blocks, heads, M] float32.

    Attention from a query word to the words of its sentence; sums to one over them.
    """
    sentences, words = (np.asarray([query[i] for query in queries]) for i in (0, 1))
    return np.asarray(_inner(_plain(model), variables, images, sentences, words, tuple(blocks)))


@functools.partial(jax.jit, static_argnums=(0, 5))
def _inner(
    model: TNT,
    variables: VariableDict,
    images: jax.Array,
    sentences: jax.Array,
    words: jax.Array,
    blocks: tuple[int, ...],
) -> jax.Array:
    """-> [queries, blocks, heads, M]."""
    _, features = model.apply(variables, images, return_features=("inner_attention",))
    at = [model.inner_blocks.index(block) for block in blocks]
    return jnp.stack([features["inner_attention"][i][0][sentences, :, words] for i in at], axis=1)


def outer_attention(model: TNT, variables: VariableDict, images: np.ndarray) -> np.ndarray:
    """images [1, H, W, C] -> [blocks, 1 + N, 1 + N] float32, averaged over the heads.

    From each sentence (row) to all, the class token first; a row sums to one.
    """
    pairs = _queries_and_keys(_plain(model), variables, images, range(model.depth))
    count = pairs[0][0].shape[0]
    found = np.empty((model.depth, count, count), np.float32)
    for rows, (query, key) in zip(found, pairs, strict=True):
        for first in range(0, count, ROWS):
            rows[first : first + ROWS] = _rows(query[first : first + ROWS], key).mean(0)
    return found


def class_attention(model: TNT, variables: VariableDict, images: np.ndarray) -> np.ndarray:
    """images [1, H, W, C] -> [heads, 1 + N] float32: what the class token attends to in the last block.

    The first weight is its attention to itself; a row sums to one.
    """
    ((query, key),) = _queries_and_keys(_plain(model), variables, images, (model.depth - 1,))
    return np.asarray(_rows(query[:1], key)[:, 0])


@functools.partial(jax.jit, static_argnums=(0, 3))
def _queries_and_keys(
    model: TNT, variables: VariableDict, images: jax.Array, blocks: Sequence[int]
) -> list[tuple[jax.Array, jax.Array]]:
    """0-based blocks -> (queries, keys) of each outer attention, both [1 + N, heads, D / heads]."""
    found = []

    def ops(config: Config) -> Ops:
        ops = model.ops(config)

        def record(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            found.append((query[0], key[0]))
            return ops.outer.attend(query, key, value)

        return dataclasses.replace(ops, outer=dataclasses.replace(ops.outer, attend=record))

    model.clone(ops=ops).apply(variables, images)
    if len(found) != model.depth:
        raise ValueError(f"{len(found)} outer attentions in {model.depth} blocks: attention maps need one in each")
    return [found[block] for block in blocks]


_rows = jax.jit(attention_weights)  # queries [q, heads, d], keys [n, heads, d] -> [heads, q, n] float32


def _plain(model: TNT) -> TNT:
    """Returns the model without scan, which would compute all blocks and hide their names."""
    return fast.replace(model, scan=False, remat=False)
