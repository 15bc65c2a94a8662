"""layers.attend by the operations that devices compute fast: the same numbers up to rounding."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

KEPT = "attention_weights"  # what a backward pass keeps of an attention, beside its queries, keys and values


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def softmax(scores: jax.Array, axis: int, dtype: DTypeLike) -> jax.Array:
    """scores [...] float32 -> [...] of `dtype`: a softmax in float32, rounded at the end.

    The slope rests on the rounded weights, those that the product with the values sees: in bfloat16 that is all a
    backward pass keeps, a third of the float32 weights and a rounded copy of them.
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
    """query, key, value [..., n, H, d] -> [..., n, H, d] by matrix products, one batch of them for all heads.

    Head-major operands and a division after the second product are what CPUs and GPUs like: the batched products are
    contiguous, and the [n, n] scores are touched once less.
    """
    query, key, value = (jnp.moveaxis(x, -2, -3) for x in (query, key, value))  # [..., H, n, d]
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum("...qk,...kd->...qd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    mixed = mixed / weights.sum(-1, keepdims=True)
    return jnp.moveaxis(mixed, -3, -2).astype(value.dtype)


def _keep_weights_alone(attention: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Keeps no more than KEPT for the backward pass; in a scan, broadcast queries and keys would be kept as well."""
    policy = jax.checkpoint_policies.save_only_these_names(KEPT)
    return jax.checkpoint(attention, prevent_cse=False, policy=policy)  # no barrier: XLA fuses across as it likes


@_keep_weights_alone
def broadcast_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """query, key, value [..., n, H, d] -> [..., n, H, d] by broadcast, multiply and sum.

    For a few words of a few channels a TPU's matrix unit would be idle behind padding; here XLA puts the
    sentences on the lanes and the vector unit does the work (4 times faster there, slower on a CPU).
    """
    scores = (query[..., :, None, :, :] * key[..., None, :, :, :]).astype(jnp.float32).sum(-1)  # [..., q, k, H]
    weights = softmax(scores * query.shape[-1] ** -0.5, -2, value.dtype)
    mixed = weights[..., None] * value[..., None, :, :, :]
    return mixed.astype(jnp.float32).sum(-3).astype(value.dtype)


@_keep_weights_alone
def einsum_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """query, key, value [..., n, H, d] -> [..., n, H, d] by the definition's products: a TPU's for many sentences."""
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key, preferred_element_type=jnp.float32)
    weights = softmax(scores * query.shape[-1] ** -0.5, -1, value.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value, preferred_element_type=jnp.float32).astype(value.dtype)
