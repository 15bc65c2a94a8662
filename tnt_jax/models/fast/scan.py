"""A model's blocks as a loop over identical ones (scan), and with recomputed activations (remat)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from tnt_jax.models.checks import REMAT_POLICIES
from tnt_jax.models.config import Config, Params
from tnt_jax.models.fast.fused import from_feature_major, to_feature_major
from tnt_jax.models.fast.stacking import block_runs, stack_blocks
from tnt_jax.models.layers import Ops
from tnt_jax.models.stochastic_depth import stochastic_depth_masks
from tnt_jax.models.tnt import TNT, TNTBlock

Policy = Callable[..., bool]


def _dots_saveable(primitive: Primitive, *arguments: Any, **settings: Any) -> bool:
    """Saves the outputs of dense layers and of kernels, but not attention scores."""
    if primitive.name == "pallas_call":
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *arguments, **settings)


POLICIES: dict[str, Policy] = dict(
    zip(REMAT_POLICIES, (jax.checkpoint_policies.nothing_saveable, _dots_saveable), strict=True)
)


def run_blocks(
    config: Config,
    ops: Ops,
    params: Params,
    words: jax.Array | None,
    sentences: jax.Array,
    keys: jax.Array | None,
    requested: tuple[str, ...],
    *,
    scan: bool,
    policy: Policy | None,
    feature_major: bool,
) -> tuple[jax.Array | None, jax.Array, list[dict[str, jax.Array]]]:
    """TNT.__call__'s loop over blocks -> (words, sentences [B, 1 + N, D], requested features of each block).

    Args:
      params: the model's, block by block or, with `scan`, also stacked.
      keys: [depth, branches], for stochastic depth; None drops nothing.
      scan: compiles consecutive identical blocks once.
      policy: what remat saves of a block for the backward pass; None: no remat.
      feature_major: carries words as [M * C, S] from block to block, as the kernel takes them.

    Raises:
      ValueError: parameters of other blocks than the model's, or parameters that TNT's own loop creates outside them.
    """
    _check_names(config, params)
    if words is not None and feature_major:
        words = to_feature_major(words)
    rates = config.drop_path_rates()
    if scan:
        stacked = stack_blocks(params)
        _check_stacks(config, stacked)
        runs = [(run, stacked[name]) for name, run in block_runs(stacked)]
    else:
        runs = [(range(i, i + 1), params[f"block_{i}"]) for i in range(1, config.depth + 1)]
    features: list[dict[str, jax.Array]] = []
    for run, block_params in runs:
        block = TNTBlock(config, ops, run.start in config.inner_blocks, parent=None)

        def body(carry, inputs, block=block):
            (words, sentences), (params, key, rate) = carry, inputs
            drop = {} if key is None else stochastic_depth_masks(key, rate, sentences)
            if words is not None and feature_major:
                words = from_feature_major(words, config.num_words)
            words, sentences, found = block.apply({"params": params}, words, sentences, drop, requested)
            if words is not None and feature_major:
                words = to_feature_major(words)
            return (words, sentences), found

        if policy is not None:
            body = jax.checkpoint(body, prevent_cse=not scan, policy=policy)
        here = slice(run.start - 1, run.stop - 1)
        if scan:
            inputs = block_params, None if keys is None else keys[here], jnp.array(rates[here], jnp.float32)
            (words, sentences), found = jax.lax.scan(body, (words, sentences), inputs)
            features += [jax.tree.map(lambda leaf, at=at: leaf[at], found) for at in range(len(run))]
        else:
            inputs = block_params, None if keys is None else keys[run.start - 1], rates[run.start - 1]
            (words, sentences), found = body((words, sentences), inputs)
            features.append(found)
    if words is not None and feature_major:
        words = from_feature_major(words, config.num_words)
    return words, sentences, features


class _Embedding(TNT):
    """The part of a TNT before its loop over blocks."""

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array | None, jax.Array]:
        """images [B, H, W, 3] -> words, sentences."""
        return self.embed(images, Ops.definition(self.config))


def _check_names(config: Config, params: Params) -> None:
    """Raises ValueError for parameters that belong to no block, nor to the parts before and after the loop."""
    image = jax.ShapeDtypeStruct((1, *config.input_shape), jnp.float32)
    known = {*jax.eval_shape(_Embedding(config).init, jax.random.key(0), image)["params"], "norm", "head"}
    if unknown := [name for name in params if not name.startswith("block") and name not in known]:
        raise ValueError(
            f"scan and remat compute the loop over blocks in models/fast/scan.py, which does not know {unknown}: set "
            "model.scan and model.remat to False, or make the parameters in TNTBlock"
        )


def _check_stacks(config: Config, params: Params) -> None:
    """Raises ValueError if the stacked parameters are of other blocks than the model's."""
    found = [(index, "inner" in params[name]) for name, run in block_runs(params) for index in run]
    expected = [(index, index in config.inner_blocks) for index in range(1, config.depth + 1)]
    if found != expected:
        theirs = [index for index, inner in found if inner]
        raise ValueError(
            f"the parameters are of {len(found)} blocks, with an inner path in {theirs}; the model has "
            f"depth={config.depth} and tnt_blocks={list(config.inner_blocks)}. Give it the parameters of its blocks."
        )
