from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tnt_jax.models.resize import resize_sentence_positions

STORED = np.load(Path(__file__).parents[1] / "fixtures" / "resize.npz")
sides = st.integers(1, 5)


def positions(grid, width=2, seed=0):
    return np.random.default_rng(seed).standard_normal((1 + grid[0] * grid[1], width)).astype(np.float32)


@pytest.mark.parametrize("index", range(5))
def test_agrees_with_timms_resample_abs_pos_embed(index):
    """Larger, smaller, not square, by fractional factors; 14 x 14 to 24 x 24 is 224 to 384 pixels."""
    old, new = (tuple(int(side) for side in grid) for grid in STORED[f"grids_{index}"])
    resized = resize_sentence_positions(STORED[f"old_{index}"], old, new)
    np.testing.assert_allclose(resized, STORED[f"new_{index}"], rtol=0, atol=2e-6)


def test_equal_grids_keep_every_bit():
    given = positions((3, 4))
    assert resize_sentence_positions(given, (3, 4), (3, 4)) is given


@settings(deadline=None, max_examples=8)
@given(sides, sides, sides, sides)
def test_shape_class_token_and_constants_are_kept(h, w, new_h, new_w):
    given = positions((h, w))
    given[:, 1] = 0.7
    resized = resize_sentence_positions(given, (h, w), (new_h, new_w))
    assert resized.shape == (1 + new_h * new_w, 2) and resized.dtype == np.float32
    np.testing.assert_array_equal(resized[0], given[0])
    np.testing.assert_allclose(resized[:, 1], 0.7, rtol=1e-6)


def test_rows_and_columns_are_not_exchanged():
    """A 2 x 5 ramp that is constant in each row stays one."""
    ramp = np.concatenate([[0], np.repeat([1.0, 2.0], 5)]).astype(np.float32)[:, None]
    resized = resize_sentence_positions(ramp, (2, 5), (4, 3))[1:, 0].reshape(4, 3)
    np.testing.assert_allclose(resized, np.broadcast_to(resized[:, :1], (4, 3)), rtol=1e-6)
    assert (np.diff(resized[:, 0]) > 0).all()


def test_works_inside_jit_and_has_a_gradient():
    def total(given):
        return resize_sentence_positions(given, (4, 4), (6, 6))[1:].sum()

    gradient = jax.jit(jax.grad(total))(positions((4, 4)))
    assert (gradient[1:] != 0).all() and not gradient[0].any()


def test_bfloat16_is_computed_in_float32():
    given = jnp.asarray(positions((4, 4)), jnp.bfloat16)
    resized = resize_sentence_positions(given, (4, 4), (6, 6))
    assert resized.dtype == jnp.bfloat16
    expected = resize_sentence_positions(given.astype(jnp.float32), (4, 4), (6, 6)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(resized, expected)


@pytest.mark.parametrize(
    "old, new, message",
    [((3, 4), (2, 2), r"old_grid=\(3, 4\): expected \[13, "), ((4, 4), (0, 2), r"new_grid=\(0, 2\) is not a grid")],
)
def test_positions_off_the_grid_are_an_error(old, new, message):
    with pytest.raises(ValueError, match=message):
        resize_sentence_positions(positions((4, 4)), old, new)
