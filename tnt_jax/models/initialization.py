"""How parameters start: as the published code draws them, or scaled to the widths of the model.

"published" draws every dense kernel and every position from a deviation of 0.02, whatever the width, which is made for
300 epochs. "scaled", a start for short runs, draws kernels of variance 1 / fan-in and positions of deviation 0.5: the
stem's norm gives the sentences beside them unit variance. Biases, norms, class token and head are the same in both.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# The published code draws from a normal of deviation 0.02 cut at -2 and 2, which is a hundred deviations away.
normal_init = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)
Initializer = nn.initializers.Initializer


def kernel_init(initialization: str) -> Initializer:
    """-> of the kernels [inputs, outputs] of dense layers."""
    return nn.initializers.lecun_normal() if initialization == "scaled" else normal_init


def position_init(initialization: str) -> Initializer:
    """-> of the position encodings of words and sentences."""
    return nn.initializers.normal(0.5) if initialization == "scaled" else normal_init


def stem_init(initialization: str, fan_in: int) -> Initializer:
    """-> of a stem's kernel [h, w, inputs, outputs]."""
    return nn.initializers.lecun_normal() if initialization == "scaled" else uniform_fan_in_init(fan_in)


def uniform_fan_in_init(fan_in: int) -> Initializer:
    """-> U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for a convolution's weights and bias."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
