"""A small TNT with parameters far from their initial values, for property tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import tnt_jax

SMALL = {
    "image_size": 16,
    "patch_size": 4,
    "word_size": 2,
    "inner_dim": 6,
    "outer_dim": 24,
    "inner_num_heads": 2,
    "outer_num_heads": 3,
    "depth": 2,
    "num_classes": 5,
}


def small_model(**overrides):
    """Returns a TNT with 16 sentences of 4 words."""
    return tnt_jax.create_model("tnt_s_patch16_224", **{**SMALL, **overrides})


def images(batch=2, size=16, seed=1, channels=3):
    """Draws images [batch, size, size, channels] from a normal distribution."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, size, size, channels)), jnp.float32)


def random_variables(model, seed=0):
    """Draws parameters in which nothing is zero, one or symmetric: initial values would hide many errors.

    NumPy draws them: compiling the initialisers would take longer than the tests.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.input_shape)))
    draw = np.random.default_rng(seed).standard_normal

    def value(path, leaf):
        if path[-1].key == "kernel":  # std 1 / sqrt(fan in): every branch weighs as much as the residual stream
            return draw(leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5
        return 0.3 * draw(leaf.shape) + (path[-1].key == "scale")

    return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.asarray(value(path, leaf), jnp.float32), shapes)


@functools.cache
def compiled(model):
    """model.apply under jit, compiled once for all tests that use the same model."""
    return jax.jit(model.apply, static_argnames=("train", "return_features"))


def run(model, variables, image, **options):
    """model.apply(variables, image, **options), compiled."""
    return compiled(model)(variables, image, **options)
