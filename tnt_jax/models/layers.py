"""The layers of the inner and the outer transformer, each by its definition, and `Ops`, which says what computes them.

models/fast has other ways to compute the same functions of the same parameters.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from tnt_jax.models.config import Config
from tnt_jax.models.initialization import Initializer, kernel_init, normal_init
from tnt_jax.models.patches import convolve_patches


def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """query, key [..., n, H, d] -> [..., H, n, n] float32: softmax(q k^T / sqrt(d)); each row sums to one (eq. 2)."""
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1)


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """query, key, value [..., n, H, d] -> [..., n, H, d]: softmax(q k^T / sqrt(d)) v for each of H heads (eq. 2)."""
    weights = attention_weights(query, key).astype(value.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value, preferred_element_type=jnp.float32).astype(value.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """x [...] -> [...]: x Phi(x), exact, evaluated in float32."""
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Layers:
    """What a transformer is made of."""

    dtype: DTypeLike  # of the arithmetic
    epsilon: float  # of the norms
    dense_layer: Callable[..., Callable[[jax.Array], jax.Array]] = nn.Dense
    norm_layer: Callable[..., Callable[[jax.Array], jax.Array]] = nn.LayerNorm
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = attend
    gelu: Callable[[jax.Array], jax.Array] = gelu
    kernel_init: Initializer = normal_init  # of dense layers
    layer_scale: float = 0.0  # where LayerScales start; 0: there are none

    @classmethod
    def of(cls, config: Config, **changes: Any) -> "Layers":
        """A model's Config, and what is not as defined -> its layers."""
        start = {"kernel_init": kernel_init(config.initialization), "layer_scale": config.layer_scale}
        return cls(config.dtype, config.norm_epsilon, **start, **changes)

    def dense(self, name: str, features: int, use_bias: bool = True) -> Callable[[jax.Array], jax.Array]:
        """x [..., F] -> [..., features]; biases start from 0."""
        return self.dense_layer(features, use_bias=use_bias, dtype=self.dtype, kernel_init=self.kernel_init, name=name)

    def norm(self, name: str) -> Callable[[jax.Array], jax.Array]:
        """x [..., F] -> [..., F]: a LayerNorm, statistics in float32, scale from 1 and bias from 0."""
        # The one-pass variance E[x^2] - E[x]^2 loses digits where the mean is large; the two passes fuse anyway.
        return self.norm_layer(epsilon=self.epsilon, dtype=self.dtype, use_fast_variance=False, name=name)

    def scale(self, name: str) -> Callable[[jax.Array], jax.Array]:
        """x [..., F] -> [..., F]: a LayerScale; x as it is where the model has none."""
        return LayerScale(self.layer_scale, name=name) if self.layer_scale else lambda x: x


class LayerScale(nn.Module):
    """x [..., F] -> [..., F]: a learned factor for each channel of a residual branch (CaiT, arXiv 2103.17239)."""

    start: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., F] -> [..., F]."""
        return x * self.param("gamma", nn.initializers.constant(self.start), x.shape[-1:], jnp.float32).astype(x.dtype)


def over_sentences(block: type[nn.Module]) -> type[nn.Module]:
    """A block of one sentence -> the same for a leading axis of them, with one set of weights; none sees another."""
    split = {"params": False, "dropout": True}
    return nn.vmap(block, variable_axes={"params": None}, split_rngs=split, in_axes=(0, 0, None))


@dataclasses.dataclass(frozen=True)
class Ops:
    """How a model is computed. The defaults are the definitions; models/fast replaces them."""

    inner: Layers  # of words
    projection: Layers  # from words to sentences
    outer: Layers  # of sentences
    over_sentences: Callable[[type[nn.Module]], type[nn.Module]] = over_sentences
    convolve_patches: Callable[..., jax.Array] = convolve_patches
    run_blocks: Callable[..., tuple[Any, jax.Array, list[dict[str, jax.Array]]]] | None = None  # None: TNT's own loop

    @classmethod
    def definition(cls, config: Config) -> "Ops":
        """A model's Config -> everything as it is defined."""
        layers = Layers.of(config)
        return cls(inner=layers, projection=layers, outer=layers)


class Attention(nn.Module):
    """x [..., n, F] -> (mixed [..., n, F], weights [..., heads, n, n] float32 or None): self-attention (eq. 2, 3).

    Queries and keys come from one projection and values from another, as in the published weights. The weights are
    computed only where `return_weights` asks for them.
    """

    num_heads: int
    qkv_bias: bool
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, return_weights: bool = False) -> tuple[jax.Array, jax.Array | None]:
        """x [..., n, F] -> (mixed [..., n, F], weights or None)."""
        features = x.shape[-1]
        both = self.layers.dense("query_key", 2 * features, self.qkv_bias)(x)
        value = self.layers.dense("value", features, self.qkv_bias)(x)
        # Cut along the channels before the heads get their axis: an axis of 2 costs a TPU a tenth of an outer block.
        heads = (*x.shape[:-1], self.num_heads, features // self.num_heads)
        query, key, value = (part.reshape(heads) for part in (*jnp.split(both, 2, axis=-1), value))
        mixed = self.layers.attend(query, key, value).reshape(x.shape)
        weights = attention_weights(query, key) if return_weights else None
        return self.layers.dense("output", features)(mixed), weights


class MLP(nn.Module):
    """x [..., F] -> [..., F]: two dense layers with a GELU between, `ratio` times as wide in the middle (eq. 4)."""

    ratio: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., F] -> [..., F]."""
        hidden = self.layers.dense("dense1", int(x.shape[-1] * self.ratio))(x)
        return self.layers.dense("dense2", x.shape[-1])(self.layers.gelu(hidden))


class SqueezeExcitation(nn.Module):
    """x [B, n, D] -> [B, n, D]: x + gate * x, a tanh gate that sees each channel's mean over the tokens (Table 12).

    The gate is norm, dense to D / 4, ReLU, dense to D, tanh: the published TNT + SE (24.7 M parameters for TNT-S).
    """

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, n, D] -> [B, n, D]."""
        mean = x.mean(axis=-2, keepdims=True, dtype=jnp.float32)
        gate = self.layers.norm("norm")(mean)
        gate = nn.relu(self.layers.dense("dense1", x.shape[-1] // 4)(gate))
        return x + x * nn.tanh(self.layers.dense("dense2", x.shape[-1])(gate))
