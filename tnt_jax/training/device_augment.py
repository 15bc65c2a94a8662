"""Augmentation on the device: crops of resident data, normalisation, mixup, CutMix and random erasing.

Mixup (arXiv 1710.09412), CutMix (1905.04899) and random erasing (1708.04896) follow timm: one lambda, box and choice
per global batch; an image's partner is its mirror in the reversed batch, across devices. An image's own draws depend on
its index in the global batch. So the result depends on the key and the batch, not on the number of devices.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tnt_jax.data.settings import DataSettings, EvalImages
from tnt_jax.training.config import MixingSettings

ATTEMPTS = 10  # at drawing a box that fits into the image, as timm does to erase and torchvision to crop


def normalize(images: jax.Array, data: DataSettings | EvalImages) -> jax.Array:
    """images [b, H, W, C], pixel values of data.pixel_bits -> float32, (images / largest - mean) / std per channel."""
    mean, std = jnp.array(data.mean, jnp.float32), jnp.array(data.std, jnp.float32)
    return (images.astype(jnp.float32) / (2**data.pixel_bits - 1) - mean) / std


def reverse_batch(x: jax.Array, axis_name: str | None = None) -> jax.Array:
    """x [b, ...], a device's shard -> its shard of the reversed global batch."""
    x = jnp.flip(x, axis=0)
    if axis_name is None:
        return x
    last = lax.axis_size(axis_name) - 1
    return lax.ppermute(x, axis_name, [(device, last - device) for device in range(last + 1)])


def draw_weights(key: jax.Array, height: int, width: int, mixing: MixingSettings) -> tuple[jax.Array, jax.Array]:
    """-> (weights [H, W, 1] of the image itself at each pixel, weight lam [] of its label), float32.

    Mixup: lam ~ Beta(alpha, alpha) everywhere. CutMix: 0 in a box of area 1 - lam around a uniform centre, clipped to
    the image, 1 elsewhere; lam is then the fraction outside the clipped box (timm's `correct_lam`).
    """
    mixed_key, choice_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    unmixed = jnp.ones((height, width, 1), jnp.float32), jnp.float32(1)
    outcomes = []
    if mixing.mixup_alpha > 0:
        lam = jax.random.beta(mixup_key, mixing.mixup_alpha, mixing.mixup_alpha)
        outcomes.append((jnp.full((height, width, 1), lam), lam))
    if mixing.cutmix_alpha > 0:
        lam = jax.random.beta(cutmix_key, mixing.cutmix_alpha, mixing.cutmix_alpha)
        outside = 1 - _cutmix_box(box_key, height, width, lam)
        outcomes.append((outside, outside.mean()))
    weights = outcomes[-1]
    if len(outcomes) == 2:
        weights = _choose(jax.random.bernoulli(choice_key, mixing.cutmix_probability), outcomes[1], outcomes[0])
    return _choose(jax.random.bernoulli(mixed_key, mixing.probability), weights, unmixed)


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, mixing: MixingSettings, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """images [b, H, W, C] float, targets [b, K] -> both mixed with their partners. All devices use the same key."""
    if mixing.probability == 0 or not (mixing.mixup_alpha or mixing.cutmix_alpha):
        return images, targets
    weights, lam = draw_weights(key, images.shape[1], images.shape[2], mixing)
    images = images * weights + reverse_batch(images, axis_name) * (1 - weights)
    targets = targets * lam + reverse_batch(targets, axis_name) * (1 - lam)
    return images, targets


def random_erase(key: jax.Array, images: jax.Array, mixing: MixingSettings, axis_name: str | None = None) -> jax.Array:
    """images [b, H, W, C], normalised -> some of them with one box of N(0, 1) noise, drawn per pixel and channel.

    All devices use the same key.
    """
    if mixing.erase_probability == 0:
        return images
    count, height, width, _ = images.shape
    first = lax.axis_index(axis_name) * count if axis_name is not None else 0
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(first + jnp.arange(count))

    def erase(key: jax.Array, image: jax.Array) -> jax.Array:
        box_key, noise_key = jax.random.split(key)
        inside = draw_erased(box_key, height, width, mixing)
        return jnp.where(inside, jax.random.normal(noise_key, image.shape, image.dtype), image)

    return jax.vmap(erase)(keys, images)


def draw_erased(key: jax.Array, height: int, width: int, mixing: MixingSettings) -> jax.Array:
    """-> [H, W, 1] bool, True in the box to erase in one image; nowhere with probability 1 - erase_probability.

    Area uniform in erase_area, log(height / width) uniform in the logs of erase_aspect, rounded to pixels; the first
    attempt that is smaller than the image in both dimensions, at a uniform position. Nowhere if no attempt is.
    """
    erased_key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
    low, high = mixing.erase_area
    areas = jax.random.uniform(area_key, (ATTEMPTS,), minval=low, maxval=high) * (height * width)
    low, high = jnp.log(jnp.array(mixing.erase_aspect, jnp.float32))
    aspects = jnp.exp(jax.random.uniform(aspect_key, (ATTEMPTS,), minval=low, maxval=high))
    heights = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    chosen = jnp.argmax(fits)
    box_height, box_width = heights[chosen], widths[chosen]
    top = jax.random.randint(top_key, (), 0, jnp.maximum(height - box_height, 0) + 1)
    left = jax.random.randint(left_key, (), 0, jnp.maximum(width - box_width, 0) + 1)
    erased = jax.random.bernoulli(erased_key, mixing.erase_probability) & fits.any()
    return erased & _inside(height, width, top, top + box_height, left, left + box_width)


def _cutmix_box(key: jax.Array, height: int, width: int, lam: jax.Array) -> jax.Array:
    """-> [H, W, 1] float32, 1 in a box of about 1 - lam of the area with a uniform centre, clipped to the image."""
    row_key, column_key = jax.random.split(key)
    side = jnp.sqrt(1 - lam)
    half_height = (height * side).astype(jnp.int32) // 2
    half_width = (width * side).astype(jnp.int32) // 2
    row = jax.random.randint(row_key, (), 0, height)
    column = jax.random.randint(column_key, (), 0, width)
    box = _inside(height, width, row - half_height, row + half_height, column - half_width, column + half_width)
    return box.astype(jnp.float32)


def _inside(height: int, width: int, top: jax.Array, bottom: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """-> [H, W, 1] bool, True for rows top <= row < bottom and columns left <= column < right."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return ((rows >= top) & (rows < bottom) & (columns >= left) & (columns < right))[..., None]


def _choose(condition: jax.Array, yes: tuple[jax.Array, ...], no: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(jnp.where(condition, a, b) for a, b in zip(yes, no, strict=True))


class Crop(NamedTuple):
    """Crop of one image: box in pixels (float32 scalars), resize kernel and mirroring (bool scalars)."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array
    bicubic: jax.Array
    flip: jax.Array


def random_resized_crops(
    examples: jax.Array, index: jax.Array, seeds: jax.Array, data: DataSettings, size: tuple[int, int]
) -> jax.Array:
    """examples uint8 or uint16 [n, h, w, C], index int32 [b], seeds uint32 [b, 2] -> float32 [b, *size, C], same range.

    Distribution and pixels are those of the host's crops (data/augment.py, by Pillow), with another random generator:
    each image depends only on its example and its seed.
    """

    def one(image: jax.Array, seed: jax.Array) -> jax.Array:
        crop = draw_crop(jax.random.wrap_key_data(seed), image.shape[0], image.shape[1], data)
        return resized_crop(image, crop, size)

    return jax.vmap(one)(jnp.take(examples, index, axis=0), seeds)


def draw_crop(key: jax.Array, height: int, width: int, data: DataSettings) -> Crop:
    """Draws the first box that fits: area uniform in data.crop_area, log(width / height) uniform in crop_aspect's logs.

    If none fits: the largest centred box with an allowed aspect ratio (torchvision's RandomResizedCrop).
    """
    area_key, aspect_key, corner_key, bicubic_key, flip_key = jax.random.split(key, 5)
    low, high = data.crop_area
    areas = jax.random.uniform(area_key, (ATTEMPTS,), minval=low, maxval=high) * (height * width)
    low, high = (math.log(aspect) for aspect in data.crop_aspect)
    aspects = jnp.exp(jax.random.uniform(aspect_key, (ATTEMPTS,), minval=low, maxval=high))
    heights, widths = jnp.round(jnp.sqrt(areas / aspects)), jnp.round(jnp.sqrt(areas * aspects))
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    found, first = fits.any(), jnp.argmax(fits)
    low, high = data.crop_aspect
    box_height = jnp.where(found, heights[first], max(1, min(height, round(width / low))))
    box_width = jnp.where(found, widths[first], max(1, min(width, round(height * high))))
    room = jnp.array([height - box_height, width - box_width])
    anywhere = jnp.minimum(jnp.floor(jax.random.uniform(corner_key, (2,)) * (room + 1)), room)
    top, left = jnp.where(found, anywhere, room // 2)
    bicubic = {
        "random": jax.random.bernoulli(bicubic_key),
        "bicubic": jnp.array(True),
        "bilinear": jnp.array(False),
    }[data.train_interpolation]
    return Crop(top, left, box_height, box_width, bicubic, jax.random.bernoulli(flip_key, data.flip_probability))


def resized_crop(image: jax.Array, crop: Crop, size: tuple[int, int]) -> jax.Array:
    """image uint8 or uint16 [h, w, C] -> float32 [*size, C]: the crop, resized as by Pillow and mirrored if crop.flip.

    The horizontal pass comes first, rounded to integer pixel values, then the vertical one. A pass is a matrix product,
    which suits images of some tens of pixels.
    """
    columns = _resize_matrix(image.shape[1], crop.left, crop.width, crop.bicubic, size[1])
    columns = jnp.where(crop.flip, columns[::-1], columns)
    rows = _resize_matrix(image.shape[0], crop.top, crop.height, crop.bicubic, size[0])
    exact = lax.Precision.HIGHEST  # a TPU's default would round pixels and weights to 8 bits
    largest = jnp.iinfo(image.dtype).max
    pixels = _whole(jnp.einsum("xw,hwc->hxc", columns, image.astype(jnp.float32), precision=exact), largest)
    return _whole(jnp.einsum("yh,hxc->yxc", rows, pixels, precision=exact), largest)


def _resize_matrix(length: int, start: jax.Array, size: jax.Array, bicubic: jax.Array, side: int) -> jax.Array:
    """-> [side, length], weights of the input pixels from `start` to `start + size` in each output pixel."""
    scale = size / side
    widening = jnp.maximum(scale, 1.0)  # the kernel widens when the image shrinks: antialiasing
    centers = start + (jnp.arange(side) + 0.5) * scale
    pixels = jnp.arange(length) + 0.5
    distance = jnp.abs(pixels[None, :] - centers[:, None]) / widening
    near, far = jnp.minimum(distance, 1.0), jnp.clip(distance, 1.0, 2.0)
    cubic = (1.5 * near - 2.5) * near * near + 1.0 + ((-0.5 * far + 2.5) * far - 4.0) * far + 2.0
    weights = jnp.where(bicubic, cubic, jnp.maximum(1.0 - distance, 0.0))
    weights = jnp.where((pixels >= start) & (pixels < start + size), weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _whole(pixels: jax.Array, largest: float) -> jax.Array:
    """Rounds pixel values half up to integers and clips them to 0..largest."""
    return jnp.clip(jnp.floor(pixels + 0.5), 0.0, largest)
