"""Reference layers of the inner and outer transformers, and `Ops`, which selects what computes them.

models/fast has faster implementations of the same functions with the same parameters.
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
    """x [...] -> [...]: the exact GELU, x Phi(x), evaluated in float32."""
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers of one transformer: their constructors, functions and settings."""

    dtype: DTypeLike  # of the computation
    epsilon: float  # of the norms
    dense_layer: Callable[..., Callable[[jax.Array], jax.Array]] = nn.Dense
    norm_layer: Callable[..., Callable[[jax.Array], jax.Array]] = nn.LayerNorm
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = attend
    gelu: Callable[[jax.Array], jax.Array] = gelu
    kernel_init: Initializer = normal_init  # of dense layers
    layer_scale: float = 0.0  # initial factor of every LayerScale; 0: no LayerScale

    @classmethod
    def of(cls, config: Config, **changes: Any) -> "Layers":
        """Returns the layers of a model's Config; `changes` replaces fields of the definition."""
        start = {"kernel_init": kernel_init(config.initialization), "layer_scale": config.layer_scale}
        return cls(config.dtype, config.norm_epsilon, **start, **changes)

    def dense(self, name: str, features: int, use_bias: bool = True) -> Callable[[jax.Array], jax.Array]:
        """x [..., F] -> [..., features]: a dense layer; biases start at 0."""
        return self.dense_layer(features, use_bias=use_bias, dtype=self.dtype, kernel_init=self.kernel_init, name=name)

    def norm(self, name: str) -> Callable[[jax.Array], jax.Array]:
        """x [..., F] -> [..., F]: LayerNorm with float32 statistics; scale starts at 1, bias at 0."""
        # The one-pass variance E[x^2] - E[x]^2 loses precision when the mean is large; two passes are fused anyway.
        return self.norm_layer(epsilon=self.epsilon, dtype=self.dtype, use_fast_variance=False, name=name)

    def scale(self, name: str) -> Callable[[jax.Array], jax.Array]:
        """x [..., F] -> [..., F]: LayerScale, or the identity if the model has none."""
        return LayerScale(self.layer_scale, name=name) if self.layer_scale else lambda x: x


class LayerScale(nn.Module):
    """x [..., F] -> [..., F]: a learned factor per channel of a residual branch (CaiT, arXiv 2103.17239)."""

    start: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., F] -> [..., F]."""
        return x * self.param("gamma", nn.initializers.constant(self.start), x.shape[-1:], jnp.float32).astype(x.dtype)


def over_sentences(block: type[nn.Module]) -> type[nn.Module]:
    """A block for one sentence -> the block for a leading axis of independent sentences, which share its weights."""
    split = {"params": False, "dropout": True}
    return nn.vmap(block, variable_axes={"params": None}, split_rngs=split, in_axes=(0, 0, None))


@dataclasses.dataclass(frozen=True)
class Ops:
    """How a model is computed. The defaults are the definitions; models/fast replaces them."""

    inner: Layers  # on words
    projection: Layers  # from words to sentences
    outer: Layers  # on sentences
    over_sentences: Callable[[type[nn.Module]], type[nn.Module]] = over_sentences
    convolve_patches: Callable[..., jax.Array] = convolve_patches
    run_blocks: Callable[..., tuple[Any, jax.Array, list[dict[str, jax.Array]]]] | None = None  # None: TNT's own loop

    @classmethod
    def definition(cls, config: Config) -> "Ops":
        """Returns the reference ops of a model's Config."""
        layers = Layers.of(config)
        return cls(inner=layers, projection=layers, outer=layers)


class Attention(nn.Module):
    """x [..., n, F] -> (mixed [..., n, F], weights [..., heads, n, n] float32 or None): self-attention (eq. 2, 3).

    Queries and keys share one projection and values have another, as in the published weights. The weights are
    computed only with `return_weights`.
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
        # Split the channels before adding the head axis: an axis of size 2 costs a TPU a tenth of an outer block.
        heads = (*x.shape[:-1], self.num_heads, features // self.num_heads)
        query, key, value = (part.reshape(heads) for part in (*jnp.split(both, 2, axis=-1), value))
        mixed = self.layers.attend(query, key, value).reshape(x.shape)
        weights = attention_weights(query, key) if return_weights else None
        return self.layers.dense("output", features)(mixed), weights


class MLP(nn.Module):
    """x [..., F] -> [..., F]: dense, GELU, dense, with a hidden width of `ratio` * F (eq. 4)."""

    ratio: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., F] -> [..., F]."""
        hidden = self.layers.dense("dense1", int(x.shape[-1] * self.ratio))(x)
        return self.layers.dense("dense2", x.shape[-1])(self.layers.gelu(hidden))


class SqueezeExcitation(nn.Module):
    """x [B, n, D] -> [B, n, D]: x + gate * x, with a gate computed from each channel's mean over the tokens (Table 12).

    The gate is norm, dense to D / 4, ReLU, dense to D, tanh, as in the published TNT + SE (TNT-S: 24.7 M parameters).
    """

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, n, D] -> [B, n, D]."""
        mean = x.mean(axis=-2, keepdims=True, dtype=jnp.float32)
        gate = self.layers.norm("norm")(mean)
        gate = nn.relu(self.layers.dense("dense1", x.shape[-1] // 4)(gate))
        return x + x * nn.tanh(self.layers.dense("dense2", x.shape[-1])(gate))
