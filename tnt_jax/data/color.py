"""Colour operations on one image, as Pillow computes them: uint8 [H, W, 3] -> uint8 [H, W, 3], level for level.

Pillow works on uint8 with tables, on 32-bit floats cut to whole levels (Image.blend) and on 16-bit fixed point for grey
levels; the arithmetic here has the same steps in the same precision. H and W are static. Sources: Pillow's ImageOps,
ImageEnhance, Blend.c, Convert.c and Filter.c.
"""

import numpy as np
import tensorflow as tf

# Grey level = (19595 R + 38470 G + 7471 B + 32768) >> 16. The sum stays below 2^24, so that float32 holds it exactly.
_GREY = np.array([[19595], [38470], [7471]], np.float32)


def auto_contrast(image: tf.Tensor) -> tf.Tensor:
    """Each channel stretched so that its darkest level is 0 and its lightest 255; a constant channel stays."""
    height, width, _ = image.shape
    pixels = tf.reshape(image, [height * width, 3])
    low = tf.cast(tf.reduce_min(pixels, axis=0), tf.float64)
    high = tf.cast(tf.reduce_max(pixels, axis=0), tf.float64)
    varied = high > low
    scale = tf.where(varied, 255.0 / tf.maximum(high - low, 1.0), 1.0)
    offset = tf.where(varied, -low * scale, 0.0)
    # float64 as in Pillow's table: in float32 some levels would fall on the other side of a whole number
    levels = tf.cast(tf.reshape(image, [height, width * 3]), tf.float64)
    levels = levels * tf.tile(scale, [width]) + tf.tile(offset, [width])
    return tf.reshape(tf.cast(tf.clip_by_value(levels, 0.0, 255.0), tf.uint8), image.shape)


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Each channel's levels mapped so that they are about equally frequent; a channel of one level stays."""
    height, width, _ = image.shape
    offsets = tf.constant(np.tile(np.arange(3, dtype=np.int32) * 256, width))
    bins = tf.cast(tf.reshape(image, [height, width * 3]), tf.int32) + offsets
    counts = tf.math.bincount(tf.reshape(bins, [-1]), minlength=768, maxlength=768)
    counts = tf.reshape(counts, [3, 256])
    levels = tf.range(256)
    lightest = tf.reduce_max(tf.where(counts > 0, levels, 0), axis=1)
    step = (height * width - tf.gather(counts, lightest, batch_dims=1)) // 255
    step = step[:, None]
    below = tf.cumsum(counts, axis=1, exclusive=True)
    table = tf.where(step > 0, (step // 2 + below) // tf.maximum(step, 1), levels)
    table = tf.cast(tf.minimum(table, 255), tf.uint8)
    return tf.reshape(tf.gather(tf.reshape(table, [768]), bins), image.shape)


def invert(image: tf.Tensor) -> tf.Tensor:
    """255 minus each level."""
    return tf.bitwise.invert(image)


def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the `bits` (int32 scalar, 0..8) highest bits of each level; 0 bits make the image black."""
    mask = 256 - tf.bitwise.left_shift(1, 8 - bits)
    return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


def solarize(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Inverts the levels from `threshold` (int32 scalar, 0..256) up."""
    light = tf.cast(tf.cast(image, tf.int32) >= threshold, tf.uint8)  # masks: tf.where takes six times as long
    return tf.bitwise.bitwise_xor(image, light * 255)


def solarize_add(image: tf.Tensor, addition: tf.Tensor) -> tf.Tensor:
    """Adds `addition` (int32 scalar, 0..128) to the levels below 128."""
    return image + tf.cast(image < 128, tf.uint8) * tf.cast(addition, tf.uint8)


def brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends black (factor 0) with the image (1) and beyond; factor float32 scalar."""
    return _blend(tf.constant(0.0), image, factor)


def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends the mean grey level (factor 0) with the image (1) and beyond; factor float32 scalar."""
    height, width, _ = image.shape
    total = tf.reduce_sum(tf.cast(_grey(image, 1), tf.int64))
    mean = tf.math.floor(tf.cast(total, tf.float64) / (height * width) + 0.5)
    return _blend(tf.cast(mean, tf.float32), image, factor)


def color(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends the grey image (factor 0) with the image (1) and beyond: saturation. factor float32 scalar."""
    return _blend(_grey(image, 3), image, factor)


def sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends the smoothed image (factor 0) with the image (1) and beyond; factor float32 scalar.

    Smoothed: 3 x 3 neighbours, the centre weighing 5 of 13, rounded; the outermost pixels stay as they are.
    """
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    pixels = tf.cast(tf.reshape(image, [height, width * 3]), tf.float32)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    box = rows[:, :-6] + rows[:, 3:-3] + rows[:, 6:]
    inner = tf.math.floor((box + 4.0 * pixels[1:-1, 3:-3]) * (1.0 / 13.0) + 0.5)
    middle = tf.concat([pixels[1:-1, :3], inner, pixels[1:-1, -3:]], axis=1)
    smooth = tf.concat([pixels[:1], middle, pixels[-1:]], axis=0)
    return _blend(tf.reshape(smooth, image.shape), image, factor)


def _grey(image: tf.Tensor, channels: int) -> tf.Tensor:
    """uint8 [H, W, 3] -> grey levels float32 [H, W, channels], all channels alike."""
    height, width, _ = image.shape
    pixels = tf.cast(tf.reshape(image, [height * width, 3]), tf.float32)
    sums = tf.matmul(pixels, tf.constant(np.repeat(_GREY, channels, axis=1)))
    return tf.reshape(tf.math.floor((sums + 32768.0) * (1.0 / 65536.0)), [height, width, channels])


def _blend(degenerate: tf.Tensor, image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """degenerate + factor * (image - degenerate) in float32, clipped to 0..255 and cut to whole levels (Blend.c)."""
    blended = degenerate + factor * (tf.cast(image, tf.float32) - degenerate)
    return tf.cast(tf.clip_by_value(blended, 0.0, 255.0), tf.uint8)
