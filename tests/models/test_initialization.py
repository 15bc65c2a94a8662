"""Initial values of parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.helpers import images, small_model
from tnt_jax.models.initialization import normal_init


@functools.cache
def start(**changes):
    model = small_model(depth=1, inner_dim=96, outer_dim=192, **changes)
    return jax.jit(model.init)(jax.random.key(0), images(channels=model.in_channels))["params"]


def test_initial_weights_have_the_published_spread():
    drawn = normal_init(jax.random.key(0), (200, 200), jnp.float32)
    assert abs(float(drawn.std()) - 0.02) < 3e-4  # truncated at two standard deviations it would be 0.0176
    assert float(jnp.abs(drawn).max()) > 0.06


def test_the_published_start_is_the_same_for_every_width():
    params = start()
    block = params["block_1"]
    for kernel in (block["inner"]["mlp"]["dense1"], block["outer"]["attention"]["value"], params["head"]):
        assert abs(float(kernel["kernel"].std()) - 0.02) < 1e-3
    assert all(abs(float(params[f"{each}_position"].std()) - 0.02) < 2e-3 for each in ("word", "sentence"))


@pytest.mark.parametrize("changes", [{}, {"tnt_blocks": (), "in_channels": 1}])
def test_the_scaled_start_keeps_the_variance_of_every_layers_inputs(changes):
    params = start(initialization="scaled", **changes)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = {
        jax.tree_util.keystr(path): leaf for path, leaf in leaves if path[-1].key == "kernel" and path[0].key != "head"
    }
    assert any("embedding" in name for name in kernels) and any("dense2" in name for name in kernels)
    for name, kernel in kernels.items():
        fan_in = np.prod(kernel.shape[:-1])
        assert abs(float(kernel.std()) * fan_in**0.5 - 1) < 0.05, name
    positions = [leaf for path, leaf in leaves if path[-1].key.endswith("_position")]
    assert positions and all(abs(float(leaf.std()) - 0.5) < 0.05 for leaf in positions)
    published = start(**changes)  # everything else starts as published
    for path, leaf in leaves:
        if path[-1].key in ("bias", "scale", "class_token") or path[0].key == "head":
            before = published
            for entry in path:
                before = before[entry.key]
            np.testing.assert_array_equal(leaf, before)


def test_a_head_that_starts_from_zero():
    params = start(zero_init_head=True, tnt_blocks=())
    assert not params["head"]["kernel"].any() and not params["head"]["bias"].any()
