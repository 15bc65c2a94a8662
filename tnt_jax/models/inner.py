"""The inner transformer: the words of one sentence attend to each other (eq. 6, 7), for all sentences at once.

`over_sentences(...)` is the definition; `fused` computes the same from the same parameters in one TPU kernel.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tnt_jax.models.layers import MLP, Attention, drop_path, layer_norm
from tnt_jax.models.pallas.layout import Sizes


class InnerBlock(nn.Module):
    """words [M, C] of ONE sentence -> (words [M, C], attention [heads, M, M] float32 or None).

    Or of S sentences, each on its own: words [S, M, C] -> (words [S, M, C], attention [S, heads, M, M] or None).

    Y' = Y + MSA(LN(Y)); Y'' = Y' + MLP(LN(Y')). `keep_attention` and `keep_mlp` [] are the sentence's drop-path
    factors (layers.keep_factors), or [S], or None.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    epsilon: float = 1e-5
    attention_form: str = "einsum"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        words: jax.Array,
        keep_attention: jax.Array | None = None,
        keep_mlp: jax.Array | None = None,
        return_weights: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """words [M, C] -> (words [M, C], attention or None)."""
        attention = Attention(self.num_heads, self.qkv_bias, self.attention_form, self.dtype, name="attention")
        mixed, weights = attention(layer_norm("norm1", self.epsilon, self.dtype)(words), return_weights)
        words = words + drop_path(mixed, keep_attention)
        flat = self.attention_form == "dot"
        hidden = MLP(self.mlp_ratio, self.dtype, flat, name="mlp")(layer_norm("norm2", self.epsilon, self.dtype)(words))
        return words + drop_path(hidden, keep_mlp), weights


def over_sentences(return_weights: bool, with_drop_path: bool, flat: bool = False) -> type[nn.Module]:
    """-> InnerBlock mapped over a leading axis of S sentences, with one set of weights for all of them.

    The mapped block takes words [S, M, C], keep_attention [S], keep_mlp [S] (or None) and gives words [S, M, C] and
    attention [S, heads, M, M] (or None). Sentences do not see each other: that is what the map says. `flat` says the
    same without the map, the block's layers taking any leading axes: with the map their matrix products would keep
    the axis of sentences (layers.FlatDense).
    """
    if flat:
        return InnerBlock
    factors = 0 if with_drop_path else None
    return nn.vmap(
        InnerBlock,
        variable_axes={"params": None},
        split_rngs={"params": False},
        in_axes=(0, factors, factors, None),
        out_axes=(0, 0 if return_weights else None),
    )


def to_lanes(words: jax.Array) -> jax.Array:
    """words [S, M, C] -> [M * C, S]: the sentences on the lanes, as the kernel has them."""
    return words.reshape(words.shape[0], -1).T


def from_lanes(words: jax.Array, num_words: int) -> jax.Array:
    """words [M * C, S], M -> [S, M, C]."""
    return words.T.reshape(words.shape[1], num_words, -1)


def check_parameters(params: dict[str, Any], sizes: Sizes, qkv_bias: bool) -> None:
    """InnerBlock's parameters, for the kernel, which takes what it is given.

    Raises:
      ValueError: they are those of a block of other sizes, or with other biases.
    """
    found, expected = params["mlp"]["dense1"]["kernel"].shape, (sizes.inner_dim, sizes.hidden_dim)
    if found != expected:
        raise ValueError(
            f"the inner block's parameter mlp/dense1/kernel is {found}, and inner_dim and mlp_ratio of the model make "
            f"{expected}. Give it the parameters of its blocks."
        )
    if ("bias" in params["attention"]["value"]) != qkv_bias:
        raise ValueError(
            f"the model has qkv_bias={qkv_bias}, and the inner block's parameters are of one with "
            f"qkv_bias={not qkv_bias}. Give it the parameters of its blocks."
        )


def fused(
    words: jax.Array,
    params: dict[str, Any],
    factors: tuple[jax.Array, jax.Array] | None,
    sizes: Sizes,
) -> jax.Array:
    """words [M * C, S], InnerBlock's parameters, drop-path factors [S] of both branches -> words [M * C, S].

    The mapped InnerBlock in one kernel forward and one backward (models/pallas), for a TPU.
    """
    from tnt_jax.models.pallas.block import inner_block_lanes  # Pallas is loaded where it is used

    attention, mlp = params["attention"], params["mlp"]
    weights = {
        "norm1": params["norm1"],
        "norm2": params["norm2"],
        "query_key": attention["query_key"]["kernel"],
        "value": attention["value"]["kernel"],
        "output": attention["output"],
        "dense1": mlp["dense1"],
        "dense2": mlp["dense2"],
    }
    if "bias" in attention["value"]:
        weights |= {"query_key_bias": attention["query_key"]["bias"], "value_bias": attention["value"]["bias"]}
    ones = jnp.ones(words.shape[1], jnp.float32)
    return inner_block_lanes(
        words,
        weights,
        *(factors or (ones, ones)),
        num_words=sizes.num_words,
        num_heads=sizes.num_heads,
        epsilon=sizes.epsilon,
        interpret=sizes.interpret,
    )
