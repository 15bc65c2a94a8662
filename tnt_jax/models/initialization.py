"""Initial parameters: as in the published code, or scaled to the widths of the model.

"published", for runs of 300 epochs, draws dense kernels and positions with standard deviation 0.02 at any width.
"scaled", for short runs, draws kernels with variance 1 / fan-in and positions with standard deviation 0.5: the stem's
norm gives the sentences unit variance. Biases, norms, class token and head are the same in both.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# The published code truncates a normal distribution at -2 and 2, which is 100 of its standard deviations of 0.02.
normal_init = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)
Initializer = nn.initializers.Initializer


def kernel_init(initialization: str) -> Initializer:
    """Returns the initializer of dense kernels [inputs, outputs]."""
    return nn.initializers.lecun_normal() if initialization == "scaled" else normal_init


def position_init(initialization: str) -> Initializer:
    """Returns the initializer of word and sentence positions."""
    return nn.initializers.normal(0.5) if initialization == "scaled" else normal_init


def stem_init(initialization: str, fan_in: int) -> Initializer:
    """Returns the initializer of a stem's kernel [h, w, inputs, outputs]."""
    return nn.initializers.lecun_normal() if initialization == "scaled" else uniform_fan_in_init(fan_in)


def uniform_fan_in_init(fan_in: int) -> Initializer:
    """Returns the initializer U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for convolutions and biases."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
