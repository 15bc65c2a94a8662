"""From an encoded image to a uint8 array of the network's size: crop, resize, flip, RandAugment or colour jitter.

Everything is a TensorFlow graph operation and draws from the given seed alone, so that an image is a function of its
seed, whatever thread makes it.
"""

import tensorflow as tf

from tnt_jax.data.settings import DataSettings


def train_image(image: tf.Tensor, seed: tf.Tensor, settings: DataSettings, image_size: tuple[int, int]) -> tf.Tensor:
    """Encoded scalar string or uint8 [h, w, 3], seed [2] integers -> uint8 [H, W, 3]."""
    return train_copies(image, tf.expand_dims(seed, 0), settings, image_size)[0]


def train_copies(image: tf.Tensor, seeds: tf.Tensor, settings: DataSettings, image_size: tuple[int, int]) -> tf.Tensor:
    """Encoded scalar string or uint8 [h, w, 3], seeds [k, 2] integers -> uint8 [k, H, W, 3], decoded once."""
    image = decode(image)
    return tf.stack([_train(image, seed, settings, image_size) for seed in tf.unstack(seeds)])


def _train(image: tf.Tensor, seed: tf.Tensor, settings: DataSettings, image_size: tuple[int, int]) -> tf.Tensor:
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        seed,
        aspect_ratio_range=settings.crop_aspect,
        area_range=settings.crop_area,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    image = tf.slice(image, begin, size)
    image = tf.image.resize(image, image_size, "bicubic", antialias=True)
    image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
    flip = tf.random.stateless_uniform([], seed) < settings.flip_probability
    return tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)


def eval_image(image: tf.Tensor, settings: DataSettings, image_size: tuple[int, int]) -> tf.Tensor:
    """Encoded scalar string or uint8 [h, w, 3] -> uint8 [H, W, 3]: resized, then the centre."""
    image = decode(image)
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    scale = tf.maximum(image_size[0] / height, image_size[1] / width) / settings.eval_crop_fraction
    size = tf.cast([height * scale, width * scale], tf.int32)
    image = tf.image.resize(image, size, settings.eval_interpolation, antialias=True)
    image = tf.image.resize_with_crop_or_pad(image, *image_size)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def decode(image: tf.Tensor) -> tf.Tensor:
    """Encoded scalar string (JPEG, PNG, GIF, BMP) or uint8 [h, w, 3] -> uint8 [h, w, 3]."""
    if image.dtype != tf.string:
        return image
    image = tf.io.decode_image(image, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return image
