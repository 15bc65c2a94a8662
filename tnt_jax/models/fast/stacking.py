"""Stacks identical blocks, for training with scan, and unstacks them for everything else.

A parameter tree has block_1, block_2, ...; in a stacked tree, consecutive identical blocks are one entry
blocks_FIRST_LAST, whose leaves have a leading axis of blocks. A training step with stacks has a twelfth of the arrays
to update, sum over devices and take norms of: less to compile, and no stacking in every step.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tnt_jax.models.config import Params

_BLOCK = re.compile(r"block_(\d+)")
_RUN = re.compile(r"blocks_(\d+)_(\d+)")


def stack_blocks(tree: Any) -> Any:
    """A tree with parameters anywhere in it (a train state, its moments) -> the same with identical blocks stacked.

    Identical blocks have the same entries, shapes and dtypes. NumPy arrays stay NumPy arrays, and stacks stay stacks.
    """
    return _map_parameters(_stack, tree, _BLOCK)


def unstack_blocks(tree: Any) -> Any:
    """Inverse of `stack_blocks`. A tree without stacks is returned as it is."""
    return _map_parameters(_unstack, tree, _RUN)


def block_runs(params: Params) -> list[tuple[str, range]]:
    """Stacked parameters -> (name, 1-based block indices) of each stack, in block order."""
    found = [(name, match) for name in params if (match := _RUN.fullmatch(name))]
    return sorted(((name, range(int(m[1]), int(m[2]) + 1)) for name, m in found), key=lambda run: run[1].start)


def is_stack(name: str) -> bool:
    """Whether an entry of a parameter tree is a stack of blocks."""
    return _RUN.fullmatch(name) is not None


def _map_parameters(function: Callable[[Params], Params], tree: Any, pattern: re.Pattern[str]) -> Any:
    """Applies the function to every node with an entry whose name matches the pattern."""

    def matches(node: Any) -> bool:
        return isinstance(node, Mapping) and any(pattern.fullmatch(str(name)) for name in node)

    return jax.tree.map(lambda node: function(node) if matches(node) else node, tree, is_leaf=matches)


def _stack(params: Params) -> dict[str, Any]:
    """block_1.., leaves [...] -> blocks_FIRST_LAST, leaves [blocks, ...]; other entries as they are."""
    others = {name: value for name, value in params.items() if not _BLOCK.fullmatch(name)}
    indices = sorted(int(match[1]) for name in params if (match := _BLOCK.fullmatch(name)))
    numbered = enumerate(indices)  # the difference changes where an index is missing
    for _, run in itertools.groupby(numbered, key=lambda each: (each[1] - each[0], _kind(params[f"block_{each[1]}"]))):
        blocks = [index for _, index in run]
        name = f"blocks_{blocks[0]}_{blocks[-1]}"
        others[name] = jax.tree.map(_stack_leaves, *(params[f"block_{index}"] for index in blocks))
    return others


def _unstack(params: Params) -> dict[str, Any]:
    """blocks_FIRST_LAST, leaves [blocks, ...] -> block_1.., leaves [...]; other entries as they are."""
    others = {name: value for name, value in params.items() if not _RUN.fullmatch(name)}
    for name, run in block_runs(params):
        for at, index in enumerate(run):
            others[f"block_{index}"] = jax.tree.map(lambda leaf, at=at: leaf[at], params[name])
    return others


def _kind(block: Params) -> tuple[jax.tree_util.PyTreeDef, list[tuple[tuple[int, ...], jnp.dtype]]]:
    """Returns the structure, shapes and dtypes that the blocks of one stack have in common."""
    return jax.tree.structure(block), [(np.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(block)]


def _stack_leaves(*leaves: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    return np.stack(leaves) if isinstance(leaves[0], np.ndarray) else jnp.stack(leaves)
