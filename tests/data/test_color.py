"""Colour operations against the Pillow that is installed, on random images of random sizes: equal, level for level."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tnt_jax.data import color

OPERATIONS = {
    "auto_contrast": lambda random: ((), ImageOps.autocontrast),
    "equalize": lambda random: ((), ImageOps.equalize),
    "invert": lambda random: ((), ImageOps.invert),
    "posterize": lambda random: with_number(ImageOps.posterize, int(random.integers(1, 9))),
    "solarize": lambda random: with_number(ImageOps.solarize, int(random.integers(0, 257))),
    "brightness": lambda random: enhanced(ImageEnhance.Brightness, random),
    "contrast": lambda random: enhanced(ImageEnhance.Contrast, random),
    "color": lambda random: enhanced(ImageEnhance.Color, random),
    "sharpness": lambda random: enhanced(ImageEnhance.Sharpness, random),
}


def with_number(function, number):
    return (number,), lambda image: function(image, number)


def enhanced(enhancer, random):
    factor = float(random.uniform(0.1, 1.9))
    return (factor,), lambda image: enhancer(image).enhance(factor)


@pytest.mark.parametrize("name", OPERATIONS)
def test_random_images_become_pillows(name):
    random = np.random.default_rng(1)
    for number in range(60):
        height, width = random.integers(1, 40, 2)
        levels = random.integers(1, 257)  # some with few levels
        image = random.integers(256 - levels, 256, (height, width, 3), np.uint8)
        image.setflags(write=number % 2 == 0)  # as TensorFlow hands images over
        arguments, pillow = OPERATIONS[name](random)
        ours, theirs = getattr(color, name)(image, *arguments), np.asarray(pillow(Image.fromarray(image)))
        np.testing.assert_array_equal(ours, theirs, f"{name} {arguments} of {image.shape}")


def test_solarize_add_and_posterize_to_nothing():
    """What Pillow has no function for: timm makes a table of its own, and refuses 0 bits."""
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(color.solarize_add(image, 110), np.where(image < 128, image + 110, image))
    assert not color.posterize(image, 0).any()
