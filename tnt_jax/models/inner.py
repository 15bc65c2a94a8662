"""The inner transformer: the words of one sentence attend to each other (eq. 6, 7), for all sentences at once."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tnt_jax.models.layers import MLP, Attention, drop_path, layer_norm


class InnerBlock(nn.Module):
    """words [M, C] of ONE sentence -> (words [M, C], attention [heads, M, M] float32 or None).

    Y' = Y + MSA(LN(Y)); Y'' = Y' + MLP(LN(Y')). `keep_attention` and `keep_mlp` [] are the sentence's drop-path
    factors (layers.keep_factors) or None.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    epsilon: float = 1e-5
    attention_form: str = "auto"
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
        hidden = MLP(self.mlp_ratio, self.dtype, name="mlp")(layer_norm("norm2", self.epsilon, self.dtype)(words))
        return words + drop_path(hidden, keep_mlp), weights


def over_sentences(return_weights: bool, with_drop_path: bool) -> type[nn.Module]:
    """-> InnerBlock mapped over a leading axis of S sentences, with one set of weights for all of them.

    The mapped block takes words [S, M, C], keep_attention [S], keep_mlp [S] (or None) and gives words [S, M, C] and
    attention [S, heads, M, M] (or None). Sentences do not see each other: that is what the map says.
    """
    factors = 0 if with_drop_path else None
    return nn.vmap(
        InnerBlock,
        variable_axes={"params": None},
        split_rngs={"params": False},
        in_axes=(0, factors, factors, None),
        out_axes=(0, 0 if return_weights else None),
    )
