"""The door: the inner block as a function with its own derivative, and the matrices it needs from the parameters."""

import functools
import math

import jax
import jax.numpy as jnp

from tnt_jax.models.pallas.backward import backward
from tnt_jax.models.pallas.forward import forward
from tnt_jax.models.pallas.layout import LOG2_E, Sizes, bias_gradient, unit_gradient, unit_matrix


def _fold_norm(norm, kernel, bias=None):
    """A layer norm's scale and bias folded into the dense layer [K, R] behind it."""
    total = norm["bias"] @ kernel
    return norm["scale"][:, None] * kernel, total if bias is None else total + bias


def _forward_matrices(weights, sizes, dtype):
    qkv, b_qkv, o, b_o, w_1, b_1, w_2, b_2 = weights
    parts = zip(jnp.split(qkv, 3, axis=1), jnp.split(b_qkv, 3), strict=True)
    a_qkv = jnp.concatenate([unit_matrix(w, sizes.unit, dtype, b) for w, b in parts], axis=0)
    columns = [jnp.tile(b, sizes.unit)[:, None] for b in (b_o, b_2)]
    a_1 = unit_matrix(w_1, sizes.unit, dtype, b_1)
    return a_qkv, unit_matrix(o, sizes.unit, dtype), columns[0], a_1, unit_matrix(w_2, sizes.unit, dtype), columns[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _block(sizes, words, keep, weights):
    """words [M * C, L], keep [2, L], weights (qkv [C, 3 C], its bias, o, b_o, w_1, b_1, w_2, b_2) -> [M * C, L]."""
    return forward(words, keep, _forward_matrices(weights, sizes, words.dtype), sizes, save=False)[0]


def _block_forward(sizes, words, keep, weights):
    out, attended, lse = forward(words, keep, _forward_matrices(weights, sizes, words.dtype), sizes, save=True)
    return out, (words, keep, weights, attended, lse)


def _block_backward(sizes, saved, upper):
    words, keep, weights, attended, lse = saved
    unit, dtype = sizes.unit, words.dtype
    channels, hidden = sizes.inner_dim, sizes.hidden_dim
    a_qkv, a_o, b_o, a_1, _, _ = _forward_matrices(weights, sizes, dtype)
    qkv, _, o, _, w_1, _, w_2, _ = weights
    # the kernel leaves out the derivative of 2 ** x in the gradients of q and k
    factors = (math.log(2), math.log(2), 1.0)
    parts = zip(jnp.split(qkv, 3, axis=1), factors, strict=True)
    t_qkv = jnp.concatenate([unit_matrix(factor * w.T, unit, dtype) for w, factor in parts], axis=1)
    transposed = t_qkv, unit_matrix(o.T, unit, dtype), unit_matrix(w_1.T, unit, dtype), unit_matrix(w_2.T, unit, dtype)
    results = backward(words, upper, attended, lse, keep, (a_qkv, a_o, b_o, a_1, *transposed), sizes)
    d_words, d_qkv, d_o, d_bo, d_1, d_2, d_b2 = results
    parts = [factor * part for factor, part in zip(factors, jnp.split(d_qkv, 3, axis=1), strict=True)]
    gradients = (
        jnp.concatenate([unit_gradient(part, unit, channels, channels) for part in parts], axis=1),
        jnp.concatenate([bias_gradient(part, unit, channels, channels) for part in parts]),
        unit_gradient(d_o, unit, channels, channels),
        d_bo.sum(axis=1).reshape(unit, channels).sum(axis=0),
        unit_gradient(d_1, unit, channels, hidden),
        bias_gradient(d_1, unit, channels, hidden),
        unit_gradient(d_2, unit, channels, hidden).T,
        d_b2.sum(axis=1).reshape(unit, channels).sum(axis=0),
    )
    return d_words, jnp.zeros_like(keep), gradients


_block.defvjp(_block_forward, _block_backward)


def inner_block(
    words: jax.Array,
    params: dict,
    keep_attention: jax.Array,
    keep_mlp: jax.Array,
    *,
    num_heads: int,
    epsilon: float,
    interpret: bool = False,
) -> jax.Array:
    """words [L, M, C] -> [L, M, C]: `inner_block_lanes` between transpositions, a choice of layout to XLA."""
    sentences, num_words, channels = words.shape
    rows = words.transpose(1, 2, 0).reshape(num_words * channels, sentences)
    out = inner_block_lanes(
        rows,
        params,
        keep_attention,
        keep_mlp,
        num_words=num_words,
        num_heads=num_heads,
        epsilon=epsilon,
        interpret=interpret,
    )
    return out.reshape(num_words, channels, sentences).transpose(2, 0, 1)


def inner_block_lanes(
    words: jax.Array,
    params: dict,
    keep_attention: jax.Array,
    keep_mlp: jax.Array,
    *,
    num_words: int,
    num_heads: int,
    epsilon: float,
    interpret: bool = False,
) -> jax.Array:
    """words [M * C, L] bfloat16 or float32 -> [M * C, L]: the inner block of L sentences (eq. 6, 7), fused for a TPU.

    Y' = Y + keep_attention * Proj(MSA(LN(Y))), Y'' = Y' + keep_mlp * MLP(LN(Y')); products in the type of the words,
    sums, softmax and norms in float32.

    Args:
      words: any L; the last tile of 1,024 sentences is filled up inside.
      params: norm1 and norm2 {scale, bias} [C], query_key [C, 2 C], value [C, C], output, dense1 and dense2
        {kernel, bias}; query_key_bias [2 C] and value_bias [C] if the block has them.
      keep_attention, keep_mlp: [L] drop-path factors, 0 or 1 / keep; ones in evaluation. Constants to the derivative.
      interpret: runs the kernels' Python on any platform, slowly: for tests.

    Raises:
      ValueError: a type of words or sizes that the kernels cannot take.
    """
    if words.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"the Pallas inner block takes bfloat16 or float32 words, not {words.dtype}")
    channels = words.shape[0] // num_words
    params = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    hidden = params["dense1"]["kernel"].shape[1]
    sizes = Sizes(num_words, channels, num_heads, hidden, epsilon, interpret)
    sizes.check()
    scale = jnp.where(jnp.arange(3 * channels) < channels, LOG2_E * sizes.head_dim**-0.5, 1.0)  # queries' columns
    qkv = jnp.concatenate([params["query_key"], params["value"]], axis=1) * scale
    b_qkv = None
    if "query_key_bias" in params:
        b_qkv = jnp.concatenate([params["query_key_bias"], params["value_bias"]]) * scale
    qkv, b_qkv = _fold_norm(params["norm1"], qkv, b_qkv)
    w_1, b_1 = _fold_norm(params["norm2"], params["dense1"]["kernel"], params["dense1"]["bias"])
    output, w_2 = params["output"], 0.5 * params["dense2"]["kernel"]  # the kernels' GELU is twice GELU
    weights = (qkv, b_qkv, output["kernel"], output["bias"], w_1, b_1, w_2, params["dense2"]["bias"])
    keep = jax.lax.stop_gradient(jnp.stack([keep_attention, keep_mlp]).astype(jnp.float32))
    return _block(sizes, words, keep, weights)
