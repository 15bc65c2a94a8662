"""Dense layers and norms with the same parameters and results as Flax's, computed differently."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.custom_batching import custom_vmap

from tnt_jax.models.layers import Layers

# For bfloat16: the backward pass recomputes from the inputs instead of saving float32 values.
RecomputedLayerNorm = nn.remat(Layers.norm_layer, prevent_cse=False)


class FlatDense(nn.Dense):
    """x [..., F] -> [..., features] as one product of two matrices, with the leading axes merged.

    XLA's CPU backend computes the gradient of a product with three axes slowly, with transposed copies: a block's words
    take 23 ms in three axes and 8 ms in two (benchmarks/cpu.md). On a TPU merging the axes would cost a copy, because
    197 sentences are padded to 25 tiles of 8.
    """

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """inputs [..., F] -> [..., features]."""
        flat = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return flat.reshape(*inputs.shape[:-1], self.features)


@custom_vmap
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., F], kernel [F, R] -> [..., R]."""
    return x @ kernel


@_product.def_vmap
def _product_of_all(axis_size: int, mapped: list[bool], x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, bool]:
    """One product for the mapped axis merged with the others."""
    if mapped != [True, False]:
        raise ValueError("MappedDense maps its inputs and shares its kernel: use nn.Dense for any other map")
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1), True


class MappedDense(nn.Dense):
    """x [M, F] -> [M, features] under nn.vmap over sentences: one FlatDense product for all of them."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """inputs [M, F] -> [M, features]."""
        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        inputs, kernel, bias = nn.dtypes.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        outputs = _product(inputs, kernel)
        return outputs if bias is None else outputs + bias


def feature_major_norm(**settings: Any) -> Callable[[jax.Array], jax.Array]:
    """nn.LayerNorm's settings -> x [..., F] -> [..., F], computed on the kernel's [F, rows] without a transpose."""
    norm = RecomputedLayerNorm(reduction_axes=0, feature_axes=0, **settings)
    return lambda x: norm(x.reshape(-1, x.shape[-1]).T).T.reshape(x.shape)


def feature_major_dense(features: int, **settings: Any) -> Callable[[jax.Array], jax.Array]:
    """nn.Dense's settings -> x [..., F] -> [..., features], a product over the first axis of [F, rows]."""
    dense = nn.DenseGeneral(features, axis=0, **settings)
    return lambda x: dense(x.reshape(-1, x.shape[-1]).T).reshape(*x.shape[:-1], features)
