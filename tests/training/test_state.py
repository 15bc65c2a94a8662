"""The initial state, and its copies on the devices."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.training.helpers import TinyModel, checked_config
from tnt_jax.training.optimizer import make_optimizer, make_schedule
from tnt_jax.training.state import create_state, replicate, unreplicate


def create(params=None, **changes):
    settings = checked_config(**changes)
    return create_state(settings, TinyModel(), make_optimizer(settings, make_schedule(settings, 5)), params)


def test_the_seed_decides_the_weights_and_the_run():
    one, same, other = create(), create(), create(seed=1)
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert not np.array_equal(one.params["dense"]["kernel"], other.params["dense"]["kernel"])
    assert not np.array_equal(one.key, other.key)


def test_a_run_starts_at_zero_with_the_average_at_the_weights():
    state = create()
    assert state.step == 0 and state.step.dtype == jnp.int32
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, state.params)
    assert all(total == weight == 0 for total, weight in state.metrics.values())
    assert create(ema_decay=0.0).ema_params is None


def test_given_weights_are_taken():
    params = jax.tree.map(lambda leaf: leaf + 1, create().params)
    state = create(params)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, params)


def test_replicate_and_back():
    state = create()
    copies = replicate(state)
    for leaf in jax.tree.leaves(copies):
        assert leaf.shape[0] == 8 and len(leaf.sharding.device_set) == 8
        assert leaf.addressable_shards[0].data.shape[0] == 1  # one copy on each device
    jax.tree.map(np.testing.assert_array_equal, unreplicate(copies), state)


def test_to_host_takes_one_copy():
    tree = {"a": jnp.arange(3), "b": (jnp.float32(2), np.ones((2, 2), np.float32))}
    host = unreplicate(replicate(tree))
    np.testing.assert_array_equal(host["a"], [0, 1, 2])
    assert host["b"][0].shape == () and host["b"][1].shape == (2, 2)
    assert isinstance(host["a"], np.ndarray)
