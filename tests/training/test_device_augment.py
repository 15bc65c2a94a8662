"""Mixup, CutMix and erasing: what they do to images and labels, and how often."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.helpers import checked_config
from tnt_jax.training import device_augment

SETTINGS = dataclasses.replace(
    checked_config().mixing,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    probability=1.0,
    cutmix_probability=0.5,
    erase_probability=0.25,
)
SIDE = 32


def only(**changes):
    return dataclasses.replace(SETTINGS, **changes)


@functools.cache
def drawn(settings, count=4000):
    """Draws mixing weights `count` times -> (weights [count, H, W], lam [count])."""
    draw = jax.jit(jax.vmap(lambda key: device_augment.draw_weights(key, SIDE, SIDE, settings)))
    weights, shares = draw(jax.random.split(jax.random.key(3), count))
    return np.array(weights[..., 0]), np.array(shares)


def test_mixup_blends_all_pixels_alike_by_a_beta_variable():
    weights, shares = drawn(only(cutmix_alpha=0.0))
    assert (weights == shares[:, None, None]).all()
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.05)  # the variance of Beta(0.8, 0.8)


def test_cutmix_takes_one_box_and_lambda_is_what_is_left():
    weights, shares = drawn(only(mixup_alpha=0.0))
    assert set(np.unique(weights)) == {0.0, 1.0}
    np.testing.assert_allclose(weights.mean((1, 2)), shares, atol=1e-6)
    for mask in weights[:300] == 0:
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()  # a rectangle ...
        assert (np.diff(np.flatnonzero(rows)) == 1).all() and (np.diff(np.flatnonzero(columns)) == 1).all()
    # Boxes are clipped at the border, so lam is larger on average than the uniform draw.
    assert 0.5 < shares.mean() < 0.75


def test_cutmix_is_the_box_of_the_formula_where_nothing_is_clipped():
    box = device_augment._cutmix_box
    sides = set()
    for seed in range(200):
        mask = np.array(box(jax.random.key(seed), SIDE, SIDE, jnp.float32(0.75))[..., 0])
        sides.add((int(mask.any(1).sum()), int(mask.any(0).sum())))
    assert max(sides) == (16, 16)  # half of each side: 2 * (int(32 * sqrt(0.25)) // 2)
    assert (16, 8) in {(high, wide) for high, wide in sides} or len(sides) > 20  # clipped ones occur


def test_one_half_of_the_batches_are_cutmix():
    weights, _ = drawn(SETTINGS)
    mixup = np.array([len(np.unique(w)) == 1 and 0 < w[0, 0] < 1 for w in weights])
    assert mixup.mean() == pytest.approx(0.5, abs=0.03)
    rare, _ = drawn(only(cutmix_probability=0.1))
    assert np.mean([len(np.unique(w)) == 1 and 0 < w[0, 0] < 1 for w in rare]) == pytest.approx(0.9, abs=0.02)


def test_probability_is_that_of_mixing_at_all():
    _, shares = drawn(only(probability=0.3, cutmix_alpha=0.0))
    assert (shares < 1).mean() == pytest.approx(0.3, abs=0.03)


def test_labels_follow_the_images():
    images = jnp.arange(4.0)[:, None, None, None] * jnp.ones((4, 8, 8, 3))
    targets = jnp.eye(4)
    mix = jax.jit(lambda i, t: device_augment.mix(jax.random.key(1), i, t, only(cutmix_alpha=0.0)))
    mixed, soft = mix(images, targets)
    share = float(soft[0, 0])
    assert 0 < share < 1
    np.testing.assert_allclose(soft, share * np.eye(4) + (1 - share) * np.eye(4)[::-1], rtol=1e-6)
    np.testing.assert_allclose(mixed[0], (1 - share) * 3, rtol=1e-5)  # image 0 is black, its partner is image 3
    np.testing.assert_allclose(mixed[1], share * 1 + (1 - share) * 2, rtol=1e-5)


def test_nothing_happens_when_all_is_off():
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    targets = jnp.eye(2)
    for off in (only(mixup_alpha=0.0, cutmix_alpha=0.0), only(probability=0.0)):
        mixed, soft = device_augment.mix(jax.random.key(1), images, targets, off)
        assert (mixed == images).all() and (soft == targets).all()
    assert (device_augment.random_erase(jax.random.key(1), images, only(erase_probability=0.0)) == images).all()


@functools.cache
def erased(count=8000):
    draw = jax.jit(jax.vmap(lambda key: device_augment.draw_erased(key, SIDE, SIDE, SETTINGS)[..., 0]))
    return np.array(draw(jax.random.split(jax.random.key(5), count)))


def test_a_quarter_of_the_images_is_erased():
    assert erased().any((1, 2)).mean() == pytest.approx(0.25, abs=0.015)


def test_erased_boxes_have_the_recipes_area_and_aspect():
    boxes = erased()[erased().any((1, 2))]
    high, wide = boxes.any(2).sum(1), boxes.any(1).sum(1)
    assert (boxes.sum((1, 2)) == high * wide).all()
    share = high * wide / SIDE**2
    assert 0.01 < share.min() < 0.03 and 0.3 < share.max() < 0.36
    # A little below the midpoint of 0.02 and 1/3: elongated boxes that do not fit are drawn again.
    assert share.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    assert abs(np.log(high / wide).mean()) < 0.06
    assert high.max() < SIDE and wide.max() < SIDE
    centre = boxes.mean(0)
    assert abs(centre[:16].mean() - centre[16:].mean()) < 0.02  # placed uniformly


def test_erasing_fills_with_noise_of_its_own_for_each_pixel():
    images = jnp.full((64, SIDE, SIDE, 3), 7.0)
    changed = np.array(device_augment.random_erase(jax.random.key(2), images, only(erase_probability=1.0)))
    noise = changed[changed != 7.0]
    assert noise.mean() == pytest.approx(0, abs=0.05) and noise.std() == pytest.approx(1, abs=0.05)
    assert len(np.unique(noise)) > 0.99 * noise.size


@pytest.mark.parametrize("devices", [4])
def test_the_number_of_devices_changes_nothing(devices):
    """Partners come from the reversed global batch; draws depend on the key and an image's index in that batch."""
    images = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
    targets = jax.nn.softmax(jax.random.normal(jax.random.key(1), (16, 4)))
    settings = only(erase_probability=0.5)

    def both(key, images, targets, axis=None):
        mixed, soft = device_augment.mix(key, images, targets, settings, axis)
        return device_augment.random_erase(key, mixed, settings, axis), soft

    key = jax.random.key(11)
    whole = jax.jit(both)(key, images, targets)
    cut = [x.reshape(devices, -1, *x.shape[1:]) for x in (images, targets)]
    shared = jax.pmap(lambda i, t: both(key, i, t, "batch"), axis_name="batch")(*cut)
    for one, many in zip(whole, shared, strict=True):
        np.testing.assert_allclose(many.reshape(one.shape), one, atol=1e-6)


@pytest.mark.parametrize(("bits", "mean"), [(8, (0.5,)), (8, (0.1, 0.2, 0.3, 0.4, 0.5)), (16, (0.25,))])
def test_any_channels_are_normalised_mixed_and_erased(bits, mean):
    config = checked_config(
        model__in_channels=5, data__pixel_bits=bits, data__mean=mean, data__std=(0.5,), data__randaugment="",
        data__color_jitter=0.0, mixing__mixup_alpha=0.8, mixing__cutmix_alpha=1.0, mixing__erase_probability=1.0,
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 2**bits, (4, 16, 24, 5)).astype(f"uint{bits}")
    images = device_augment.normalize(pixels, config.data)
    np.testing.assert_allclose(images, (pixels / (2**bits - 1) - mean) / 0.5, atol=1e-5)
    mixed, _ = device_augment.mix(jax.random.key(1), images, jnp.eye(4), config.mixing)
    erased = device_augment.random_erase(jax.random.key(2), mixed, config.mixing)
    changed = np.asarray(erased != mixed)
    assert erased.shape == images.shape and changed.any((1, 2, 3)).all()
    assert (changed == changed[..., :1]).all()  # the same box in all channels
