"""From an encoded image to a uint8 array of the network's size: crop, resize, flip, RandAugment or colour jitter.

Everything is a TensorFlow graph operation and draws from the given seed alone, so that an image is a function of its
seed, whatever thread makes it. The results agree with Pillow on the same image and draws, since the peers' recipes are
Pillow's (resample.py, color.py, geometry.py). Random erasing and mixing happen later, on the device.
"""

import functools
import math
from typing import NamedTuple

import tensorflow as tf

from tnt_jax.data import color, randaugment, resample
from tnt_jax.data.settings import DataSettings, EvalImages

_CROP_TRIES = 10
_SEEDS = 3  # crop and flip; RandAugment; colour jitter


class CropDraws(NamedTuple):
    """The choices for one random resized crop, uniform in 0..1 where nothing else is said."""

    area: tf.Tensor  # [tries]
    aspect: tf.Tensor  # [tries]
    corner: tf.Tensor  # [2], rows and columns
    bicubic: tf.Tensor  # bool
    flip: tf.Tensor  # bool


def train_image(image: tf.Tensor, seed: tf.Tensor, settings: DataSettings, image_size: tuple[int, int]) -> tf.Tensor:
    """Encoded scalar string or uint8 [h, w, 3], seed [2] integers -> uint8 [H, W, 3].

    Random resized crop, flip, then RandAugment, or colour jitter where data.randaugment is empty. Of a JPEG only the
    part inside the crop is decoded. An image that cannot be decoded is TensorFlow's InvalidArgumentError when the graph
    runs.
    """
    seeds = tf.random.split(seed, _SEEDS, alg="philox")
    draws = draw_crop(seeds[0], settings)
    if image.dtype == tf.string:
        image = tf.cond(
            tf.io.is_jpeg(image),
            lambda: _decode_and_crop_jpeg(image, draws, settings),
            lambda: _crop(decode(image), draws, settings),
        )
    else:
        image = _crop(image, draws, settings)
    return _augment_crop(image, draws, seeds, settings, image_size)


def train_copies(image: tf.Tensor, seeds: tf.Tensor, settings: DataSettings, image_size: tuple[int, int]) -> tf.Tensor:
    """Encoded scalar string or uint8 [h, w, 3], seeds [k, 2] integers -> uint8 [k, H, W, 3], decoded once.

    Copy i equals train_image(image, seeds[i], ...) but for a JPEG's colours beside the crop's border, which decoding a
    part can round another way. k is static; errors as in train_image.
    """
    if seeds.shape[0] is None:
        raise ValueError(f"seeds of shape {seeds.shape}: the number of copies must be known when the graph is built")
    image = decode(image)
    return tf.stack([train_image(image, seed, settings, image_size) for seed in tf.unstack(seeds)])


def eval_image(image: tf.Tensor, settings: DataSettings | EvalImages, image_size: tuple[int, int]) -> tf.Tensor:
    """Encoded scalar string or uint8 [h, w, 3] -> uint8 [H, W, 3]: resized, then the centre.

    The image is resized so that image_size is data.eval_crop_fraction of it, its aspect kept, as timm does: for a
    square the shorter side becomes floor(side / fraction) and the longer is cut to whole pixels (torchvision's Resize);
    for another shape both sides cover the target and are rounded (timm's ResizeKeepRatio).
    """
    image = decode(image)
    size = tf.shape(image)[:2]
    target = [math.floor(side / settings.eval_crop_fraction) for side in image_size]
    if target[0] == target[1]:
        resized = target[0] * size // tf.reduce_min(size)
    else:
        ratio = tf.reduce_min(tf.cast(size, tf.float64) / tf.constant(target, tf.float64))
        resized = tf.cast(tf.round(tf.cast(size, tf.float64) / ratio), tf.int32)
    corner = tf.cast(tf.round(tf.cast(resized - tf.constant(image_size), tf.float64) / 2), tf.int32)
    bicubic = settings.eval_interpolation == "bicubic"
    return resample.resize(image, image_size, bicubic, resized=resized, corner=corner)


def decode(image: tf.Tensor) -> tf.Tensor:
    """Encoded scalar string -> uint8 [h, w, 3]; a decoded image passes through.

    JPEG (grey and CMYK too), PNG (transparency dropped), BMP and GIF (its first frame).
    """
    if image.dtype != tf.string:
        return image
    image = tf.cond(
        tf.io.is_jpeg(image),
        lambda: tf.io.decode_jpeg(image, channels=3, dct_method="INTEGER_ACCURATE"),  # Pillow's choice
        lambda: tf.io.decode_image(image, channels=3, expand_animations=False),
    )
    image.set_shape([None, None, 3])
    return image


def draw_crop(seed: tf.Tensor, settings: DataSettings) -> CropDraws:
    """seed [2] integers -> the choices for one crop and flip."""
    uniform = tf.random.stateless_uniform([2 * _CROP_TRIES + 4], seed, alg="philox")
    area, aspect, corner, rest = tf.split(uniform, [_CROP_TRIES, _CROP_TRIES, 2, 2])
    bicubic = {
        "random": rest[0] < 0.5,
        "bicubic": tf.constant(True),
        "bilinear": tf.constant(False),
    }[settings.train_interpolation]
    return CropDraws(area, aspect, corner, bicubic, rest[1] < settings.flip_probability)


def crop_box(size: tf.Tensor, draws: CropDraws, settings: DataSettings) -> tf.Tensor:
    """size [2] int32 (rows, columns) of an image -> the crop [4] int32: top, left, height, width (torchvision's order).

    The first of ten tries that fits: area uniform in data.crop_area, aspect (width / height) log-uniform in
    data.crop_aspect, anywhere in the image. If none fits: the largest centred part whose aspect is allowed.
    """
    pixels = tf.cast(size, tf.float32)
    low, high = settings.crop_area
    area = (low + (high - low) * draws.area) * pixels[0] * pixels[1]
    low, high = (math.log(aspect) for aspect in settings.crop_aspect)
    aspect = tf.exp(low + (high - low) * draws.aspect)
    tries = tf.cast(tf.round(tf.sqrt(tf.stack([area / aspect, area * aspect], axis=1))), tf.int32)  # [tries, 2]
    fits = tf.reduce_all((tries > 0) & (tries <= size), axis=1)
    first = tf.argmax(tf.cast(fits, tf.int32))  # the first of the largest
    low, high = settings.crop_aspect
    widest = tf.round(tf.minimum(pixels, tf.stack([pixels[1] / low, pixels[0] * high])))
    widest = tf.maximum(widest, 1.0)  # of an aspect that the image is too small for
    found = fits[first]
    crop = tf.where(found, tries[first], tf.cast(widest, tf.int32))
    room = size - crop
    anywhere = tf.cast(draws.corner * tf.cast(room + 1, tf.float32), tf.int32)
    corner = tf.where(found, tf.minimum(anywhere, room), room // 2)
    return tf.concat([corner, crop], axis=0)


def color_jitter(image: tf.Tensor, seed: tf.Tensor, strength: float) -> tf.Tensor:
    """image uint8 [H, W, 3], seed [2] integers -> uint8 [H, W, 3], as torchvision's ColorJitter without hue.

    Brightness, contrast and saturation in random order, each by a factor uniform in max(0, 1 - strength) to
    1 + strength.
    """
    if strength == 0:
        return image
    uniform = tf.random.stateless_uniform([6], seed, alg="philox")
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    factors = low + (high - low) * uniform[:3]
    order = tf.argsort(uniform[3:])
    operations = (color.brightness, color.contrast, color.color)
    for place in range(3):
        turn = order[place]
        branches = [functools.partial(operate, image, factors[turn]) for operate in operations]
        image = tf.ensure_shape(tf.switch_case(turn, branches), image.shape)
    return image


def _decode_and_crop_jpeg(image: tf.Tensor, draws: CropDraws, settings: DataSettings) -> tf.Tensor:
    box = crop_box(tf.image.extract_jpeg_shape(image)[:2], draws, settings)
    return tf.image.decode_and_crop_jpeg(image, box, channels=3, dct_method="INTEGER_ACCURATE")


def _crop(image: tf.Tensor, draws: CropDraws, settings: DataSettings) -> tf.Tensor:
    top, left, height, width = tf.unstack(crop_box(tf.shape(image)[:2], draws, settings))
    return image[top : top + height, left : left + width]


def _augment_crop(
    image: tf.Tensor, draws: CropDraws, seeds: tf.Tensor, settings: DataSettings, image_size: tuple[int, int]
) -> tf.Tensor:
    image = resample.resize(image, image_size, draws.bicubic, draws.flip)
    if not settings.randaugment:
        return color_jitter(image, seeds[2], settings.color_jitter)
    policy = randaugment.parse(settings.randaugment)
    fill = tuple(max(0, min(255, round(255 * level))) for level in settings.mean)
    choices = randaugment.draw(seeds[1], policy, settings.train_interpolation)
    return randaugment.apply(image, choices, policy, fill)
