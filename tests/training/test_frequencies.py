"""How often the recipe applies mixup, CutMix and erasing, over 20,000 draws (for RandAugment see tests/data)."""

import functools

import jax
import numpy as np
import pytest

from configs import default
from tnt_jax.training import device_augment
from tnt_jax.training.config import check_config

DRAWS, SIDE = 20_000, 16


def four_deviations(probability: float) -> float:
    """Four standard deviations of the mean of DRAWS yes-or-no draws: a correct program fails with 1 key in 16,000."""
    return 4 * (probability * (1 - probability) / DRAWS) ** 0.5


@functools.cache
def drawn() -> tuple[np.ndarray, ...]:
    """Draws with 20,000 keys and the recipe's settings -> (erased, mixup, CutMix), bools [DRAWS].

    Mixup has one weight for all pixels, strictly between 0 and 1; CutMix has weights 0 and 1, or 1 if nothing is cut.
    """
    settings = check_config(default.get_config()).mixing

    def draw(key: jax.Array) -> tuple[jax.Array, ...]:
        erased = device_augment.draw_erased(key, SIDE, SIDE, settings).any()
        weights, _ = device_augment.draw_weights(key, SIDE, SIDE, settings)
        mixup = ((weights == weights[0, 0]) & (weights > 0) & (weights < 1)).all()
        return erased, mixup, ((weights == 0) | (weights == 1)).all()

    keys = jax.random.split(jax.random.key(2), DRAWS)
    return jax.device_get(jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=1000))(keys))


def test_a_quarter_of_the_images_is_erased():
    assert drawn()[0].mean() == pytest.approx(0.25, abs=four_deviations(0.25))


def test_half_of_the_batches_take_mixup_and_half_cutmix():
    _, mixup, cutmix = drawn()
    assert mixup.mean() == pytest.approx(0.5, abs=four_deviations(0.5))
    # Beta(0.8, 0.8) rounds to 0 or 1 in float32 now and then, which looks like CutMix; every draw is mixed.
    assert (mixup | cutmix).all() and not (mixup & cutmix).any()
