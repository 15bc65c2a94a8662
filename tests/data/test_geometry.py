"""Geometric operations against the Pillow that is installed, on random images of random sizes: level for level."""

import numpy as np
import pytest
from PIL import Image

from tnt_jax.data import geometry

FILL = (124, 116, 104)
# The share of the image that a translation moves by goes beyond 1, where nothing of the image is left.
LARGEST = {"rotate": 200.0, "shear_x": 0.5, "shear_y": 0.5, "translate_x": 1.2, "translate_y": 1.2}


def pillow(name, image, amount, bicubic):
    """Image, as timm calls it."""
    options = {"resample": Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR, "fillcolor": FILL}
    if name == "rotate":
        return image.rotate(amount, **options)
    width, height = image.size
    matrix = {
        "shear_x": (1, amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, amount, 1, 0),
        "translate_x": (1, 0, amount * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, amount * height),
    }[name]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **options)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("name", LARGEST)
def test_random_images_become_pillows(name, bicubic):
    random = np.random.default_rng(2)
    for _ in range(60):
        height, width = random.integers(1, 40, 2)
        image = random.integers(0, 256, (height, width, 3), np.uint8)
        amount = float(random.uniform(-LARGEST[name], LARGEST[name]))
        ours = getattr(geometry, name)(image, amount, bicubic, FILL)
        theirs = np.asarray(pillow(name, Image.fromarray(image), amount, bicubic))
        np.testing.assert_array_equal(ours, theirs, f"{name} by {amount} of {image.shape}")


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("name", LARGEST)
def test_an_even_image_stays_even_inside(name, bicubic):
    """No rounding error may cut a level off where all neighbours are alike."""
    image = np.full((37, 23, 3), FILL, np.uint8)
    for amount in np.linspace(-LARGEST[name], LARGEST[name], 41):
        np.testing.assert_array_equal(getattr(geometry, name)(image, float(amount), bicubic, FILL), image)
