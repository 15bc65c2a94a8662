"""Layers that the inner and the outer transformer share: norms, dense layers, GELU, attention, MLP, drop path."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from tnt_jax.models.gelu import gelu

BRANCHES = ("inner_attention", "inner_mlp", "outer_attention", "outer_mlp")  # that drop path may leave out
KEPT = "attention_weights"  # what a backward pass keeps of an attention, beside its queries, keys and values

# The published code draws from a normal of deviation 0.02 cut at -2 and 2, which is a hundred deviations away.
normal_init = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)


def drop_path(branch: jax.Array, factor: jax.Array | None) -> jax.Array:
    """branch [S, ...], factor [S] or [] -> [S, ...]: a residual branch times its drop-path factor."""
    if factor is None:
        return branch
    return branch * factor.reshape(factor.shape + (1,) * (branch.ndim - factor.ndim)).astype(branch.dtype)


def keep_factors(key: jax.Array, shape: tuple[int, ...], rate: jax.Array | float) -> jax.Array:
    """-> [*shape] float32: 0 with probability `rate`, else 1 / (1 - rate) (stochastic depth, Huang et al. 2016)."""
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    return jax.random.bernoulli(key, keep, shape).astype(jnp.float32) / keep


@jax.named_scope("drop_path_factors")  # tools.tpu_report divides a step by these names
def drop_path_factors(keys: jax.Array, rate: jax.Array | float, sentences: jax.Array) -> dict[str, jax.Array]:
    """A block's keys [4], rate and sentences [B, 1 + N, D] -> factors of its BRANCHES: inner [B * N], outer [B]."""
    batch, tokens = sentences.shape[:2]
    sizes = {name: batch * (tokens - 1) if name.startswith("inner") else batch for name in BRANCHES}
    return {name: keep_factors(key, (sizes[name],), rate) for name, key in zip(BRANCHES, keys, strict=True)}


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def softmax(scores: jax.Array, axis: int, dtype: Any) -> jax.Array:
    """scores [...] float32 -> [...] of `dtype`: a softmax in float32, rounded at the end.

    The slope rests on the rounded weights, those that the product with the values sees: in bfloat16 that is all a
    backward pass keeps, a third of the float32 weights and a rounded copy of them.
    """
    return jax.nn.softmax(scores, axis).astype(dtype)


@softmax.defjvp
def _softmax_slope(
    axis: int, dtype: Any, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (scores,), (tangent,) = primals, tangents
    rounded = checkpoint_name(softmax(scores, axis, dtype), KEPT)
    weights = rounded.astype(jnp.float32)
    slope = weights * (tangent - (weights * tangent).sum(axis, keepdims=True))
    return rounded, slope.astype(dtype)


def _dot_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
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


def _broadcast_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """query, key, value [..., n, H, d] -> [..., n, H, d] by broadcast, multiply and sum.

    For a few words of a few channels a TPU's matrix unit would be idle behind padding; in this form XLA puts the
    sentences on the lanes and the vector unit does the work (4 times faster there, slower on a CPU).
    """
    scores = (query[..., :, None, :, :] * key[..., None, :, :, :]).astype(jnp.float32).sum(-1)  # [..., q, k, H]
    weights = softmax(scores * query.shape[-1] ** -0.5, -2, value.dtype)
    mixed = weights[..., None] * value[..., None, :, :, :]
    return mixed.astype(jnp.float32).sum(-3).astype(value.dtype)


def _einsum_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """query, key, value [..., n, H, d] -> [..., n, H, d] as equation 2 has it: the readable form, and the TPU's."""
    weights = attention_weights(query, key, value.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value, preferred_element_type=jnp.float32).astype(value.dtype)


def _frugal(attention: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Keeps no more than KEPT for the backward pass; in a scan, broadcast queries and keys would be kept as well."""
    policy = jax.checkpoint_policies.save_only_these_names(KEPT)
    return jax.checkpoint(attention, prevent_cse=False, policy=policy)  # no barrier: XLA fuses across as it likes


def attend(query: jax.Array, key: jax.Array, value: jax.Array, form: str = "dot") -> jax.Array:
    """query, key, value [..., n, H, d] -> [..., n, H, d]: softmax(q k^T / sqrt(d)) v for each of H heads.

    `form` is "einsum" (the definition; what a TPU likes for long sequences), "dot" (the same products, as CPUs and
    GPUs like them) or "broadcast" (multiply and sum: a TPU's for a few words). Scores, softmax and sums are float32.
    Same numbers in every form.

    Raises:
      ValueError: an unknown form.
    """
    forms: dict[str, Callable[..., jax.Array]] = {
        "einsum": _frugal(_einsum_attention),
        "dot": _dot_attention,
        "broadcast": _frugal(_broadcast_attention),
    }
    if form not in forms:
        raise ValueError(f"there is no attention form {form!r}; use one of {', '.join(forms)}")
    return forms[form](query, key, value)


def attention_weights(query: jax.Array, key: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """query, key [..., n, H, d] -> [..., H, n, n] of `dtype`: who looks at whom; each row sums to one."""
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key, preferred_element_type=jnp.float32)
    return softmax(scores * query.shape[-1] ** -0.5, -1, dtype)


def layer_norm(name: str, epsilon: float, dtype: Any, axis: int = -1) -> nn.LayerNorm:
    """x [..., F] -> [..., F]: a LayerNorm over the last axis, statistics in float32, scale from 1 and bias from 0.

    Or over another `axis`. In bfloat16 the backward pass starts from x again instead of keeping float32 numbers.
    """
    layer = _RecomputedLayerNorm if dtype == jnp.bfloat16 else nn.LayerNorm
    # The one-pass variance E[x^2] - E[x]^2 loses digits where the mean is large; the two passes fuse anyway.
    return layer(
        epsilon=epsilon, dtype=dtype, use_fast_variance=False, reduction_axes=axis, feature_axes=axis, name=name
    )


_RecomputedLayerNorm = nn.remat(nn.LayerNorm, prevent_cse=False)


class FlatDense(nn.Dense):
    """x [..., F] -> [..., features]: nn.Dense as one product of two matrices, leading axes merged.

    The same numbers and parameters. XLA's CPU backend turns the gradient of a product with three axes into slow ones
    with transposed copies: a block's words take 23 ms in three axes and 8 in two (benchmarks/cpu.md). On a TPU the
    merged axis would cost a copy, because 197 sentences fill 25 tiles of 8.
    """

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """inputs [..., F] -> [..., features]."""
        flat = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return flat.reshape(*inputs.shape[:-1], self.features)


def dense(name: str, features: int, dtype: Any, use_bias: bool = True, flat: bool = False) -> nn.Dense:
    """x [..., F] -> [..., features]: weights from a truncated normal of deviation 0.02, biases from 0."""
    layer = FlatDense if flat else nn.Dense
    return layer(features, use_bias=use_bias, dtype=dtype, kernel_init=normal_init, name=name)


class Attention(nn.Module):
    """x [..., n, F] -> (mixed [..., n, F], weights [..., heads, n, n] float32 or None): self-attention (eq. 2, 3).

    Queries and keys come from one projection and values from another, as in the published weights. The weights are
    computed only where `return_weights` asks for them.
    """

    num_heads: int
    qkv_bias: bool = False
    form: str = "dot"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, return_weights: bool = False) -> tuple[jax.Array, jax.Array | None]:
        """x [..., n, F] -> (mixed [..., n, F], weights or None)."""
        features, flat = x.shape[-1], self.form == "dot"
        heads = (self.num_heads, features // self.num_heads)
        both = dense("query_key", 2 * features, self.dtype, self.qkv_bias, flat)(x)
        value = dense("value", features, self.dtype, self.qkv_bias, flat)(x)
        # Cut along the channels before the heads get their axis: an axis of 2 costs a TPU a tenth of an outer block.
        parts = (*jnp.split(both, 2, axis=-1), value)
        query, key, value = (part.reshape(*x.shape[:-1], *heads) for part in parts)
        mixed = attend(query, key, value, self.form).reshape(x.shape)
        weights = attention_weights(query, key) if return_weights else None
        return dense("output", features, self.dtype, flat=flat)(mixed), weights


class MLP(nn.Module):
    """x [..., F] -> [..., F]: two dense layers with a GELU between, `mlp_ratio` times as wide in the middle (eq. 4)."""

    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    flat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., F] -> [..., F]."""
        hidden = dense("dense1", int(x.shape[-1] * self.mlp_ratio), self.dtype, flat=self.flat)(x)
        return dense("dense2", x.shape[-1], self.dtype, flat=self.flat)(gelu(hidden))


class SqueezeExcitation(nn.Module):
    """x [B, n, D] -> [B, n, D]: x + gate * x, a tanh gate that sees each channel's mean over the tokens (Table 12).

    The gate is norm, dense to D / 4, ReLU, dense to D, tanh: the published TNT + SE (24.7 M parameters for TNT-S).
    """

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, n, D] -> [B, n, D]."""
        mean = x.mean(axis=-2, keepdims=True, dtype=jnp.float32)
        gate = layer_norm("norm", self.epsilon, self.dtype)(mean)
        gate = nn.relu(dense("dense1", x.shape[-1] // 4, self.dtype)(gate))
        return x + x * nn.tanh(dense("dense2", x.shape[-1], self.dtype)(gate))
