"""Stochastic depth (Huang et al. 2016), or drop path: residual branches dropped at random in training."""

import jax
import jax.numpy as jnp

DropMasks = dict[str, jax.Array]  # by branch; empty if nothing is dropped
BRANCHES = ("inner_attention", "inner_mlp", "outer_attention", "outer_mlp")  # that may be dropped


def drop_path(branch: jax.Array, mask: jax.Array | None) -> jax.Array:
    """branch [S, ...], drop-path mask [S] or [] -> [S, ...]: the residual branch times its mask, if any."""
    if mask is None:
        return branch
    return branch * mask.reshape(mask.shape + (1,) * (branch.ndim - mask.ndim)).astype(branch.dtype)


def stochastic_depth_mask(key: jax.Array, shape: tuple[int, ...], rate: jax.Array | float) -> jax.Array:
    """-> [*shape] float32: 0 with probability `rate`, else 1 / (1 - rate) (stochastic depth, Huang et al. 2016)."""
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    return jax.random.bernoulli(key, keep, shape).astype(jnp.float32) / keep


@jax.named_scope("drop_path")
def stochastic_depth_masks(keys: jax.Array, rate: jax.Array | float, sentences: jax.Array) -> DropMasks:
    """A block's keys [4], rate and sentences [B, 1 + N, D] -> masks by branch: inner [B * N], outer [B]."""
    batch, tokens = sentences.shape[:2]
    sizes = {name: batch * (tokens - 1) if name.startswith("inner") else batch for name in BRANCHES}
    return {name: stochastic_depth_mask(key, (sizes[name],), rate) for name, key in zip(BRANCHES, keys, strict=True)}
