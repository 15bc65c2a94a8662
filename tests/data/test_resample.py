"""Resizing against the Pillow that is installed, from any size to any size: equal, level for level."""

import numpy as np
import pytest
from PIL import Image

from tnt_jax.data import resample


def pillow_resize(image, size, bicubic):
    """Image -> Image of size (height, width): along the rows first, as Pillow did alone until version 12.

    timm needs such a version; later ones begin with the columns where that is less work.
    """
    resampling = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    return image.resize((size[1], image.height), resampling).resize(size[::-1], resampling)


def random_case(random):
    """-> an image, and a size to bring it to: most small, some larger than a crop is, some a line or a pixel."""
    height, width, *size = random.choice([1, 2, 7, 8, 9, 31, 64, 65, 250], 4).tolist()
    levels = random.integers(0, 256, (height, width, 3), np.uint8)
    return levels if random.random() < 0.5 else levels // 128 * 255, tuple(size)  # black and white rings the most


@pytest.mark.parametrize("bicubic", [False, True])
def test_any_size_becomes_any_size_as_pillow_does_it(bicubic):
    random = np.random.default_rng(3)
    for _ in range(80):
        image, size = random_case(random)
        theirs = np.asarray(pillow_resize(Image.fromarray(image), size, bicubic))
        ours = resample.resize(image, size, bicubic)
        np.testing.assert_array_equal(ours, theirs, f"{image.shape} to {size}")
        np.testing.assert_array_equal(resample.resize(image, size, bicubic, True), theirs[:, ::-1])


@pytest.mark.parametrize("bicubic", [False, True])
def test_a_part_of_the_resized_image_is_that_part(bicubic):
    random = np.random.default_rng(4)
    for _ in range(40):
        image, resized = random_case(random)
        whole = resample.resize(image, resized, bicubic)
        size = tuple(int(random.integers(1, side + 1)) for side in resized)
        corner = tuple(int(random.integers(0, side - part + 1)) for side, part in zip(resized, size, strict=True))
        part = resample.resize(image, size, bicubic, resized=resized, corner=corner)
        rows, columns = (slice(first, first + length) for first, length in zip(corner, size, strict=True))
        np.testing.assert_array_equal(part, whole[rows, columns])


def test_a_view_is_resized_like_its_copy():
    image = np.random.default_rng(5).integers(0, 256, (40, 50, 3), np.uint8)
    view = image[3:31, 7:40]
    image.setflags(write=False)  # as TensorFlow hands images over
    np.testing.assert_array_equal(resample.resize(view, (20, 20), True), resample.resize(view.copy(), (20, 20), True))
