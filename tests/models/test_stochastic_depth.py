import jax
import jax.numpy as jnp
import numpy as np

from tnt_jax.models import stochastic_depth


def test_masks_keep_the_expectation():
    masks = stochastic_depth.stochastic_depth_mask(jax.random.key(0), (20_000,), 0.3)
    np.testing.assert_allclose(np.unique(masks), [0, 1 / 0.7], rtol=1e-6)
    assert abs(float((masks == 0).mean()) - 0.3) < 0.015
    np.testing.assert_array_equal(stochastic_depth.stochastic_depth_mask(jax.random.key(0), (10,), 0.0), 1)


def test_drop_path_scales_whole_examples():
    branch = jnp.ones((2, 3, 4))
    np.testing.assert_array_equal(stochastic_depth.drop_path(branch, jnp.array([0.0, 2.0]))[:, 0, 0], [0, 2])
    assert stochastic_depth.drop_path(branch, None) is branch
