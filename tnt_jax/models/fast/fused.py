"""The inner block as one TPU kernel (fast/pallas) on words in the feature-major layout [M * C, S].

There the S sentences lie on the 128 lanes and nothing is padded; [S, M, C] would take five times the memory. Blocks
still exchange words as [S, M, C], as in the definition, and XLA cancels the transposes between them.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from absl import logging

from tnt_jax.models import layers
from tnt_jax.models.config import Config, Params
from tnt_jax.models.fast.pallas.layout import Sizes
from tnt_jax.models.layers import Ops
from tnt_jax.models.stochastic_depth import DropMasks
from tnt_jax.models.tnt import InnerBlock

INTERPRETER = "interpreter"  # a device kind for tests: runs the kernel's Python in place of a TPU


def to_feature_major(words: jax.Array) -> jax.Array:
    """words [S, M, C] -> [M * C, S]."""
    return words.reshape(words.shape[0], -1).T


def from_feature_major(words: jax.Array, num_words: int) -> jax.Array:
    """words [M * C, S], M -> [S, M, C]."""
    return words.T.reshape(words.shape[1], num_words, -1)


def expected_parameters(config: Config) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the parameters that the kernel uses: exactly those of an inner block."""
    channels, hidden = config.inner_dim, int(config.inner_dim * config.mlp_ratio)
    shapes = {f"{norm}/{leaf}": (channels,) for norm in ("norm1", "norm2") for leaf in ("scale", "bias")}
    if config.layer_scale:
        shapes |= {f"{name}/gamma": (channels,) for name in ("layer_scale1", "layer_scale2")}
    dense = {
        "attention/query_key": (channels, 2 * channels),
        "attention/value": (channels, channels),
        "attention/output": (channels, channels),
        "mlp/dense1": (channels, hidden),
        "mlp/dense2": (hidden, channels),
    }
    for name, shape in dense.items():
        shapes[f"{name}/kernel"] = shape
        if config.qkv_bias or name not in ("attention/query_key", "attention/value"):
            shapes[f"{name}/bias"] = shape[1:]
    return shapes


def mismatch(config: Config, params: Params) -> str | None:
    """An inner block's parameters, or their shapes -> how they differ from `expected_parameters`, or None."""
    found = {name: tuple(leaf.shape) for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()}
    expected = expected_parameters(config)
    if found == expected:
        return None
    differences = [f"an unknown {name} {shape}" for name, shape in found.items() if name not in expected]
    differences += [f"no {name} {shape}" for name, shape in expected.items() if name not in found]
    differences += [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    return f"the inner block has {'; '.join(differences)}"


def obstacle(config: Config, device_kind: str) -> str | None:
    """Returns why the kernel cannot compute this model's inner blocks on the device, or None if it can."""
    if jnp.dtype(config.dtype) not in (jnp.bfloat16, jnp.float32):
        return f"the kernel takes dtype bfloat16 or float32, not {jnp.dtype(config.dtype)}"
    sizes, item = sizes_of(config), jnp.dtype(config.dtype).itemsize
    if device_kind != INTERPRETER and (reason := sizes.does_not_fit(device_kind, item)):
        return reason
    try:
        sizes.check()
    except ValueError as error:
        return str(error)
    block = InnerBlock(config, Ops.definition(config))
    words = jax.ShapeDtypeStruct((config.num_words, config.inner_dim), jnp.float32)
    try:
        shapes = jax.eval_shape(block.init, jax.random.key(0), words, {})["params"]
    except Exception as error:  # whatever a changed definition raises
        return f"the inner block does not take only words and drop-path masks ({error})"
    if difference := mismatch(config, shapes):
        return f"{difference}, and the kernel (models/fast/pallas) takes exactly the parameters that it knows"
    return None


def sizes_of(config: Config, interpret: bool = False) -> Sizes:
    """Returns the kernel's sizes for a model."""
    hidden = int(config.inner_dim * config.mlp_ratio)
    return Sizes(config.num_words, config.inner_dim, config.inner_num_heads, hidden, config.norm_epsilon, interpret)


@functools.cache  # called at every trace
def log_once(message: str) -> None:
    """Logs a warning once."""
    logging.warning("%s", message)


def over_sentences(interpret: bool, strict: bool) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Returns layers.over_sentences with InnerBlock computed by the kernel (`interpret`: by its Python, on any device).

    Any other block raises ValueError if `strict`; otherwise it is computed as defined, with a warning.
    """

    class FusedInnerBlock(nn.Module):
        """words [S, M, C] -> (words [S, M, C], attention [S, heads, M, M] or None)."""

        config: Config
        ops: Ops

        @nn.compact
        def __call__(self, words: jax.Array, drop: DropMasks, return_weights: bool = False):
            """InnerBlock for all sentences."""
            params = self.variables["params"]
            if return_weights:  # the kernel does not return the attention
                plain = layers.over_sentences(InnerBlock)(self.config, self.ops)
                return plain.apply({"params": params}, words, drop, True)
            return inner_block(self.config, params, words, drop, interpret), None

    def fused(block: type[nn.Module]) -> type[nn.Module]:
        if block is InnerBlock:
            return FusedInnerBlock
        difference = f"the kernel computes InnerBlock, and the inner block is {block.__name__}"
        if strict:
            raise ValueError(f"inner_implementation='pallas' is not possible: {difference}; use 'auto' or 'xla'")
        log_once(f"inner_implementation='auto' is 'xla' here: {difference}")
        return layers.over_sentences(block)

    return fused


def inner_block(config: Config, params: Params, words: jax.Array, drop: DropMasks, interpret: bool):
    """InnerBlock's parameters, words [S, M, C], drop-path masks [S] -> words [S, M, C].

    Raises:
      ValueError: parameters of another block; the message names them.
    """
    from tnt_jax.models.fast.pallas import block  # imports Pallas only when used

    difference = mismatch(config, params)
    if difference:
        raise ValueError(f"{difference}: these are the parameters of another model")
    ones = jnp.ones(words.shape[0], jnp.float32)
    words = block.inner_block(
        to_feature_major(words),
        params,
        drop.get("inner_attention", ones),
        drop.get("inner_mlp", ones),
        num_words=config.num_words,
        num_heads=config.inner_num_heads,
        epsilon=config.norm_epsilon,
        interpret=interpret,
    )
    return from_feature_major(words, config.num_words)
