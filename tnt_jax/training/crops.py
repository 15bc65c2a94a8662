"""Random resized crop and flip on the device, for data sets that live there (config.data.on_device).

The same distribution and the same pixels as on the host (data/augment.py, by Pillow):
the horizontal pass first, rounded to whole grey levels, then the vertical one. Only the draws themselves come from
another generator. A pass is a product with a [H, h] matrix, which is right for images of some tens of pixels.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tnt_jax.data.settings import DataSettings

CROP_TRIES = 10  # as torchvision


class Crop(NamedTuple):
    """Of one image: the box in pixels (float32 scalars), the kernel and the mirroring (bool scalars)."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array
    bicubic: jax.Array
    flip: jax.Array


def take(examples: jax.Array, index: jax.Array, seeds: jax.Array, settings: DataSettings, side: int) -> jax.Array:
    """examples uint8 [n, h, w, 3], index int32 [b], seeds uint32 [b, 2] -> float32 [b, side, side, 3] in 0..255.

    Whole grey levels: each image is a function of its example and its seed alone.
    """

    def one(image: jax.Array, seed: jax.Array) -> jax.Array:
        crop = draw_crop(jax.random.wrap_key_data(seed), image.shape[0], image.shape[1], settings)
        return resized_crop(image, crop, side)

    return jax.vmap(one)(jnp.take(examples, index, axis=0), seeds)


def draw_crop(key: jax.Array, height: int, width: int, settings: DataSettings) -> Crop:
    """The first of ten boxes that fits: area uniform in data.crop_area, log(width / height) uniform in crop_aspect's.

    If none fits: the largest centred part whose aspect is allowed (torchvision's RandomResizedCrop).
    """
    area_key, aspect_key, corner_key, bicubic_key, flip_key = jax.random.split(key, 5)
    low, high = settings.crop_area
    areas = jax.random.uniform(area_key, (CROP_TRIES,), minval=low, maxval=high) * (height * width)
    low, high = (math.log(aspect) for aspect in settings.crop_aspect)
    aspects = jnp.exp(jax.random.uniform(aspect_key, (CROP_TRIES,), minval=low, maxval=high))
    heights, widths = jnp.round(jnp.sqrt(areas / aspects)), jnp.round(jnp.sqrt(areas * aspects))
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    found, first = fits.any(), jnp.argmax(fits)
    low, high = settings.crop_aspect
    box_height = jnp.where(found, heights[first], max(1, min(height, round(width / low))))
    box_width = jnp.where(found, widths[first], max(1, min(width, round(height * high))))
    room = jnp.array([height - box_height, width - box_width])
    anywhere = jnp.minimum(jnp.floor(jax.random.uniform(corner_key, (2,)) * (room + 1)), room)
    top, left = jnp.where(found, anywhere, room // 2)
    bicubic = {
        "random": jax.random.bernoulli(bicubic_key),
        "bicubic": jnp.array(True),
        "bilinear": jnp.array(False),
    }[settings.train_interpolation]
    return Crop(top, left, box_height, box_width, bicubic, jax.random.bernoulli(flip_key, settings.flip_probability))


def resized_crop(image: jax.Array, crop: Crop, side: int) -> jax.Array:
    """image uint8 [h, w, 3] -> float32 [side, side, 3]: the crop as Pillow resizes it, mirrored where it says so."""
    columns = _weights(image.shape[1], crop.left, crop.width, crop.bicubic, side)
    columns = jnp.where(crop.flip, columns[::-1], columns)
    rows = _weights(image.shape[0], crop.top, crop.height, crop.bicubic, side)
    exact = jax.lax.Precision.HIGHEST  # a TPU's default would round pixels and weights to 8 bits
    pixels = _whole(jnp.einsum("xw,hwc->hxc", columns, image.astype(jnp.float32), precision=exact))
    return _whole(jnp.einsum("yh,hxc->yxc", rows, pixels, precision=exact))


def _weights(length: int, start: jax.Array, size: jax.Array, bicubic: jax.Array, side: int) -> jax.Array:
    """-> [side, length]: what each output pixel takes of each input pixel from `start` to `start + size`."""
    scale = size / side
    widening = jnp.maximum(scale, 1.0)  # the kernel grows where the image shrinks: antialiasing
    centers = start + (jnp.arange(side) + 0.5) * scale
    places = jnp.arange(length) + 0.5
    distance = jnp.abs(places[None, :] - centers[:, None]) / widening
    near, far = jnp.minimum(distance, 1.0), jnp.clip(distance, 1.0, 2.0)
    cubic = (1.5 * near - 2.5) * near * near + 1.0 + ((-0.5 * far + 2.5) * far - 4.0) * far + 2.0
    weights = jnp.where(bicubic, cubic, jnp.maximum(1.0 - distance, 0.0))
    weights = jnp.where((places >= start) & (places < start + size), weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _whole(levels: jax.Array) -> jax.Array:
    """Grey levels -> whole ones, rounded half up and kept in 0..255."""
    return jnp.clip(jnp.floor(levels + 0.5), 0.0, 255.0)
