"""The inner block with a custom derivative, and the kernels' matrices from its parameters."""

import functools
import math

import jax
import jax.numpy as jnp

from tnt_jax.models.config import Params
from tnt_jax.models.fast.pallas.backward import backward
from tnt_jax.models.fast.pallas.forward import forward
from tnt_jax.models.fast.pallas.layout import LOG2_E, Sizes, bias_gradient, block_diagonal, block_diagonal_gradient


def _fold_norm(norm, kernel, bias=None):
    """Folds a layer norm's scale and bias into the dense layer [K, R] after it."""
    total = norm["bias"] @ kernel
    return norm["scale"][:, None] * kernel, total if bias is None else total + bias


def _forward_matrices(weights, sizes, dtype):
    qkv, b_qkv, o, b_o, w_1, b_1, w_2, b_2 = weights
    parts = zip(jnp.split(qkv, 3, axis=1), jnp.split(b_qkv, 3), strict=True)
    a_qkv = jnp.concatenate([block_diagonal(w, sizes.unit, dtype, b) for w, b in parts], axis=0)
    columns = [jnp.tile(b, sizes.unit)[:, None] for b in (b_o, b_2)]
    a_1 = block_diagonal(w_1, sizes.unit, dtype, b_1)
    return (
        a_qkv,
        block_diagonal(o, sizes.unit, dtype),
        columns[0],
        a_1,
        block_diagonal(w_2, sizes.unit, dtype),
        columns[1],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _block(sizes, words, masks, weights):
    """words [M * C, L], masks [2, L], weights (qkv [C, 3 C], its bias, o, b_o, w_1, b_1, w_2, b_2) -> [M * C, L]."""
    return forward(words, masks, _forward_matrices(weights, sizes, words.dtype), sizes, save=False)[0]


def _block_forward(sizes, words, masks, weights):
    out, attended, lse = forward(words, masks, _forward_matrices(weights, sizes, words.dtype), sizes, save=True)
    return out, (words, masks, weights, attended, lse)


def _block_backward(sizes, saved, cotangent):
    words, masks, weights, attended, lse = saved
    unit, dtype = sizes.unit, words.dtype
    channels, hidden = sizes.inner_dim, sizes.hidden_dim
    a_qkv, a_o, b_o, a_1, _, _ = _forward_matrices(weights, sizes, dtype)
    qkv, _, o, _, w_1, _, w_2, _ = weights
    # the kernel omits log(2), from the derivative of 2 ** x, in the gradients of q and k
    factors = (math.log(2), math.log(2), 1.0)
    parts = zip(jnp.split(qkv, 3, axis=1), factors, strict=True)
    t_qkv = jnp.concatenate([block_diagonal(factor * w.T, unit, dtype) for w, factor in parts], axis=1)
    transposed = (
        t_qkv,
        block_diagonal(o.T, unit, dtype),
        block_diagonal(w_1.T, unit, dtype),
        block_diagonal(w_2.T, unit, dtype),
    )
    results = backward(words, cotangent, attended, lse, masks, (a_qkv, a_o, b_o, a_1, *transposed), sizes)
    d_words, d_qkv, d_o, d_bo, d_1, d_2, d_b2 = results
    parts = [factor * part for factor, part in zip(factors, jnp.split(d_qkv, 3, axis=1), strict=True)]
    gradients = (
        jnp.concatenate([block_diagonal_gradient(part, unit, channels, channels) for part in parts], axis=1),
        jnp.concatenate([bias_gradient(part, unit, channels, channels) for part in parts]),
        block_diagonal_gradient(d_o, unit, channels, channels),
        d_bo.sum(axis=1).reshape(unit, channels).sum(axis=0),
        block_diagonal_gradient(d_1, unit, channels, hidden),
        bias_gradient(d_1, unit, channels, hidden),
        block_diagonal_gradient(d_2, unit, channels, hidden).T,
        d_b2.sum(axis=1).reshape(unit, channels).sum(axis=0),
    )
    return d_words, jnp.zeros_like(masks), gradients


_block.defvjp(_block_forward, _block_backward)


def inner_block(
    words: jax.Array,
    params: Params,
    attention_mask: jax.Array,
    mlp_mask: jax.Array,
    *,
    num_words: int,
    num_heads: int,
    epsilon: float,
    interpret: bool = False,
) -> jax.Array:
    """words [M * C, L] bfloat16 or float32 -> [M * C, L]: the inner block of L sentences (eq. 6, 7), fused for a TPU.

    Y' = Y + attention_mask * MSA(LN(Y)), Y'' = Y' + mlp_mask * MLP(LN(Y')); products in the words' dtype; sums,
    softmax and norms in float32.

    Args:
      words: any L; the last tile of 1,024 sentences is padded inside.
      params: models.tnt.InnerBlock's.
      attention_mask, mlp_mask: drop-path masks [L], 0 or 1 / (1 - rate); ones in evaluation. Not
        differentiated.
      interpret: runs the kernels' Python on any platform, slowly: for tests.

    Raises:
      ValueError: a dtype of words or sizes that the kernels do not support.
    """
    if words.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"the Pallas inner block takes bfloat16 or float32 words, not {words.dtype}")
    channels = words.shape[0] // num_words
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    query_key, value, output = (params["attention"][name] for name in ("query_key", "value", "output"))
    dense1, dense2 = params["mlp"]["dense1"], params["mlp"]["dense2"]
    if "layer_scale1" in params:  # gamma (x W + b) = x (W gamma) + b gamma
        output = jax.tree.map(lambda leaf: leaf * params["layer_scale1"]["gamma"], output)
        dense2 = jax.tree.map(lambda leaf: leaf * params["layer_scale2"]["gamma"], dense2)
    sizes = Sizes(num_words, channels, num_heads, dense1["kernel"].shape[1], epsilon, interpret)
    sizes.check()
    scale = jnp.where(jnp.arange(3 * channels) < channels, LOG2_E * sizes.head_dim**-0.5, 1.0)  # queries' columns
    qkv = jnp.concatenate([query_key["kernel"], value["kernel"]], axis=1) * scale
    b_qkv = jnp.concatenate([query_key["bias"], value["bias"]]) * scale if "bias" in value else None
    qkv, b_qkv = _fold_norm(params["norm1"], qkv, b_qkv)
    w_1, b_1 = _fold_norm(params["norm2"], dense1["kernel"], dense1["bias"])
    w_2 = 0.5 * dense2["kernel"]  # the kernels' GELU is twice GELU
    weights = (qkv, b_qkv, output["kernel"], output["bias"], w_1, b_1, w_2, dense2["bias"])
    masks = jax.lax.stop_gradient(jnp.stack([attention_mask, mlp_mask]).astype(jnp.float32))
    return _block(sizes, words, masks, weights)
