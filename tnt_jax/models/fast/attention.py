"""layers.attend with the operations that are fast on each device; results are equal up to rounding."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

KEPT = "attention_weights"  # what the backward pass saves besides queries, keys and values


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def softmax(scores: jax.Array, axis: int, dtype: DTypeLike) -> jax.Array:
    """scores [...] float32 -> [...] of `dtype`: softmax in float32, rounded at the end.

    The derivative uses the rounded weights, which are also what multiplies the values. In bfloat16 they are all that
    the backward pass saves: a third of the memory of float32 weights and a rounded copy.
    """
    return jax.nn.softmax(scores, axis).astype(dtype)


@softmax.defjvp
def _softmax_slope(
    axis: int, dtype: DTypeLike, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (scores,), (tangent,) = primals, tangents
    rounded = checkpoint_name(softmax(scores, axis, dtype), KEPT)
    weights = rounded.astype(jnp.float32)
    slope = weights * (tangent - (weights * tangent).sum(axis, keepdims=True))
    return rounded, slope.astype(dtype)


def dot_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """query, key, value [..., n, H, d] -> [..., n, H, d] by matrix products, batched over the heads.

    Head-major operands and division after the second product suit CPUs and GPUs: the batched products are contiguous,
    and the [n, n] scores are read and written once less.
    """
    query, key, value = (jnp.moveaxis(x, -2, -3) for x in (query, key, value))  # [..., H, n, d]
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum("...qk,...kd->...qd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    mixed = mixed / weights.sum(-1, keepdims=True)
    return jnp.moveaxis(mixed, -3, -2).astype(value.dtype)


def _keep_weights_alone(attention: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Saves only KEPT for the backward pass; a scan would otherwise save broadcast queries and keys as well."""
    policy = jax.checkpoint_policies.save_only_these_names(KEPT)
    return jax.checkpoint(attention, prevent_cse=False, policy=policy)  # no barrier: XLA may fuse across


@_keep_weights_alone
def broadcast_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """query, key, value [..., n, H, d] -> [..., n, H, d] by broadcast, multiply and sum.

    With few words of few channels, a TPU's matrix unit would mostly process padding. Here XLA puts the sentences on
    the lanes and the vector unit does the work (4 times faster on a TPU, slower on a CPU).
    """
    scores = (query[..., :, None, :, :] * key[..., None, :, :, :]).astype(jnp.float32).sum(-1)  # [..., q, k, H]
    weights = softmax(scores * query.shape[-1] ** -0.5, -2, value.dtype)
    mixed = weights[..., None] * value[..., None, :, :, :]
    return mixed.astype(jnp.float32).sum(-3).astype(value.dtype)


@_keep_weights_alone
def einsum_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """query, key, value [..., n, H, d] -> [..., n, H, d] by the definition's products, for many sentences on a TPU."""
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key, preferred_element_type=jnp.float32)
    weights = softmax(scores * query.shape[-1] ** -0.5, -1, value.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value, preferred_element_type=jnp.float32).astype(value.dtype)
