"""Crops on the device: the host's pixels for the same box, the same box distribution, determined by the seed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.training.helpers import checked_config
from tnt_jax.data import augment, decoding, order
from tnt_jax.training import device_augment

SETTINGS = dataclasses.replace(checked_config().data, randaugment="", color_jitter=0.0, crop_area=(0.3, 1.0))
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 24, 32, 3)).astype(np.uint8)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 24, 32), (3, 5, 10, 20), (7, 1, 16, 16), (23, 31, 1, 1)])
def test_pixels_are_those_of_the_host(box, flip, bicubic):
    """Random pixels are the worst case. At 16 x 16, box (0, 0, 24, 32) shrinks; (3, 5, 10, 20) grows and shrinks."""
    top, left, height, width = box
    crop = device_augment.Crop(*(jnp.float32(number) for number in box), jnp.array(bicubic), jnp.array(flip))
    found = np.asarray(device_augment.resized_crop(IMAGES[0], crop, (16, 16)))
    cut = Image.fromarray(IMAGES[0][top : top + height, left : left + width])
    expected = np.asarray(cut.resize((16, 16), Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR))
    expected = expected[:, ::-1] if flip else expected
    # The host uses Pillow. From 10 to 16 pixels, bilinear weights are whole sixteenths, so that one pixel value
    # in sixteen lies on a half, where the last bit of float32 decides; the others are equal.
    assert np.abs(found - expected).max() <= 1
    assert np.mean(found == expected) > (0.99 if bicubic or box[2] != 10 else 15 / 16)


def draws(settings, count=4000, height=24, width=32):
    seeds = order.augmentation_seeds(1, 0, np.arange(count), np.zeros(count, np.int64)).view(np.uint32)

    def one(seed):
        return device_augment.draw_crop(jax.random.wrap_key_data(seed), height, width, settings)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(seeds))


def test_boxes_lie_inside_and_spread_as_the_config_says():
    crop = draws(SETTINGS)
    assert (crop.top >= 0).all() and (crop.top + crop.height <= 24).all()
    assert (crop.left >= 0).all() and (crop.left + crop.width <= 32).all()
    share = crop.height * crop.width / (24 * 32)
    assert 0.28 < share.min() < 0.33 and share.max() > 0.93
    aspect = crop.width / crop.height
    assert np.quantile(aspect, 0.01) > 0.7 and np.quantile(aspect, 0.99) < 1.42
    assert abs(np.mean(crop.flip) - 0.5) < 0.03 and abs(np.mean(crop.bicubic) - 0.5) < 0.03
    room = (32 - crop.width) > 4
    assert abs(np.mean(crop.left[room] / (32 - crop.width[room])) - 0.5) < 0.03


def test_a_box_that_never_fits_is_the_largest_allowed_one_in_the_middle():
    crop = draws(dataclasses.replace(SETTINGS, crop_area=(1.0, 1.0), crop_aspect=(0.5, 0.5)), count=4)
    assert set(crop.height) == {24} and set(crop.width) == {12} and set(crop.top) == {0} and set(crop.left) == {10}


def test_settings_are_followed():
    crop = draws(dataclasses.replace(SETTINGS, train_interpolation="bicubic", flip_probability=0.0), count=200)
    assert crop.bicubic.all() and not crop.flip.any()
    assert not draws(dataclasses.replace(SETTINGS, train_interpolation="bilinear"), count=200).bicubic.any()


def test_an_image_depends_on_its_example_and_seed_alone():
    seeds = order.augmentation_seeds(0, 0, np.arange(6), np.zeros(6, np.int64)).view(np.uint32)
    index = np.arange(6, dtype=np.int32)
    take = jax.jit(device_augment.random_resized_crops, static_argnums=(3, 4))
    together = take(IMAGES, index, seeds, SETTINGS, (16, 16))
    assert together.shape == (6, 16, 16, 3) and together.dtype == jnp.float32
    apart = take(IMAGES, index[::-1][:2], seeds[::-1][:2], SETTINGS, (16, 16))
    np.testing.assert_array_equal(apart, together[::-1][:2])
    other = take(IMAGES, index[:1], seeds[1:2], SETTINGS, (16, 16))
    assert not np.array_equal(other[0], together[0])


@pytest.mark.parametrize("aspect", [0.001, 1000.0])
def test_a_box_has_a_pixel_where_the_image_is_too_small_for_the_aspect(aspect):
    settings = dataclasses.replace(SETTINGS, crop_area=(1.0, 1.0), crop_aspect=(aspect, aspect))
    crop = draws(settings, count=4)
    assert set(crop.height) == ({24} if aspect < 1 else {1}) and set(crop.width) == ({1} if aspect < 1 else {32})
    box = augment.crop_box((32, 24), augment.draw(np.array([1, 2]), settings), settings)
    assert box[2:] == (crop.width[0], crop.height[0])


@pytest.mark.parametrize(("count", "dtype"), [(1, np.uint8), (5, np.uint8), (2, np.uint16)])
def test_other_channels_and_shapes_are_those_of_the_host(count, dtype):
    pixels = RNG.integers(0, np.iinfo(dtype).max, (24, 32, count), dtype)
    crop = device_augment.Crop(*map(jnp.float32, (3, 5, 20, 20)), jnp.array(True), jnp.array(True))
    found = np.asarray(device_augment.resized_crop(pixels, crop, (12, 16)))
    cut = decoding.from_array(pixels).crop((5, 3, 25, 23)).resize((16, 12), Image.Resampling.BICUBIC)
    expected = decoding.as_array(cut).astype(int)[:, ::-1]
    assert found.shape == (12, 16, count)
    # The device rounds and clips between the two passes, as Pillow does for 8 bits but not for 16.
    assert np.abs(found - expected).max() <= 1 or dtype == np.uint16 and np.median(np.abs(found - expected)) <= 1
