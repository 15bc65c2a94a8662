"""Rotation, shear and translation of one image as Pillow's affine transform does them: uint8 [H, W, 3] -> the same.

Output pixel (x, y) shows the point (a (x + 1/2) + b (y + 1/2) + c, d (x + 1/2) + e (y + 1/2) + f) of the input. Points
outside the input take the fill colour; inside it, neighbours beyond the border repeat the border's pixels, and the
result is clipped and cut (not rounded) to whole levels. Bilinear weighs 2 x 2 pixels. Bicubic weighs 4 x 4 with Keys'
kernel, a = -1 here where Pillow's resize has a = -0.5. Sources: Pillow's Geometry.c and Image.rotate. H and W static.

A translation and a shear move whole lines of pixels and interpolate along them with one set of weights for each line,
several times cheaper than the general case that a rotation needs.
"""

import math

import numpy as np
import tensorflow as tf

from tnt_jax.data import resample

Fill = tuple[int, int, int]

# Weights of neighbouring pixels as polynomials of the distance from the pixel left of the point: [powers, pixels]
_LINEAR = np.array([[1, 0], [-1, 1]], np.float32)
_CUBIC = np.array([[0, 1, 0, 0], [-1, 0, 1, 0], [2, -2, 1, -1], [-1, 1, -1, 1]], np.float32)
_EITHER = {True: _CUBIC, False: np.pad(_LINEAR, [[0, 2], [1, 1]])}  # both as four powers of four pixels


def translate_x(image: tf.Tensor, share: tf.Tensor, bicubic: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Moves the image left by `share` (float32 scalar) of its width."""
    return _translate(image, share, 1, bicubic, fill)


def translate_y(image: tf.Tensor, share: tf.Tensor, bicubic: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Moves the image up by `share` (float32 scalar) of its height."""
    return _translate(image, share, 0, bicubic, fill)


def shear_x(image: tf.Tensor, factor: tf.Tensor, bicubic: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Row y moves left by factor * (y + 1/2) pixels; factor float32 scalar."""
    height, width, _ = image.shape
    offsets = factor * (np.arange(height, dtype=np.float32)[:, None] + 0.5)
    whole = tf.math.floor(offsets)
    columns = tf.cast(whole, tf.int32) + np.arange(-1, width + 2, dtype=np.int32)
    pixels = tf.clip_by_value(columns, 0, width - 1) + np.arange(height, dtype=np.int32)[:, None] * width
    moved = tf.gather(tf.reshape(image, [height * width, 3]), pixels)
    moved = tf.cast(tf.reshape(moved, [height, (width + 3) * 3]), tf.float32)
    weights = _weights(offsets - whole, bicubic)
    levels = tf.add_n([weights[tap] * moved[:, 3 * tap : 3 * (tap + width)] for tap in range(4)])
    points = np.repeat(np.arange(width, dtype=np.float32) + 0.5, 3) + offsets
    return _finish(levels, (points >= 0) & (points < width), fill, image.shape)


def shear_y(image: tf.Tensor, factor: tf.Tensor, bicubic: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Column x moves up by factor * (x + 1/2) pixels; factor float32 scalar."""
    height, width, _ = image.shape
    offsets = factor * (np.repeat(np.arange(width, dtype=np.float32), 3) + 0.5)  # of each column's three channels
    whole = tf.math.floor(offsets)
    rows = tf.cast(whole[::3], tf.int32) + np.arange(-1, height + 2, dtype=np.int32)[:, None]
    pixels = tf.clip_by_value(rows, 0, height - 1) * width + np.arange(width, dtype=np.int32)
    moved = tf.gather(tf.reshape(image, [height * width, 3]), pixels)
    moved = tf.cast(tf.reshape(moved, [height + 3, width * 3]), tf.float32)
    weights = _weights(offsets - whole, bicubic)
    levels = tf.add_n([weights[tap] * moved[tap : tap + height] for tap in range(4)])
    points = np.arange(height, dtype=np.float32)[:, None] + 0.5 + offsets
    return _finish(levels, (points >= 0) & (points < height), fill, image.shape)


def rotate(image: tf.Tensor, degrees: tf.Tensor, bicubic: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Turns the image around its centre, counter-clockwise, by `degrees` (float32 scalar)."""
    height, width, _ = image.shape
    angle = degrees * (math.pi / 180)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    right = np.tile(np.arange(width, dtype=np.float32) + (0.5 - width / 2), height)
    down = np.repeat(np.arange(height, dtype=np.float32) + (0.5 - height / 2), width)
    x = cosine * right - sine * down + width / 2
    y = cosine * down + sine * right + height / 2
    # All 4 x 4 neighbours at once are too much for a core's own cache, and for memory that need not be mapped anew.
    quarter = -(-height // 4) * width
    parts = [slice(first, first + quarter) for first in range(0, height * width, quarter)]
    levels = tf.cond(
        bicubic,
        lambda: tf.concat([_interpolate(image, x[part], y[part], _CUBIC) for part in parts], axis=0),
        lambda: _interpolate(image, x, y, _LINEAR),
    )
    inside = tf.cast((x >= 0) & (x < width) & (y >= 0) & (y < height), tf.float32)
    inside = tf.matmul(inside[:, None], tf.ones([1, 3]))  # for three channels; quicker than tf.repeat
    return _finish(tf.reshape(levels, [height, -1]), tf.reshape(inside, [height, -1]), fill, image.shape)


def _translate(image: tf.Tensor, share: tf.Tensor, axis: int, bicubic: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Moves the image towards pixel 0 of the axis by `share` of its length."""
    length = image.shape[axis]
    offset = share * length
    whole = tf.math.floor(offset)
    first, last = (image[:1], image[-1:]) if axis == 0 else (image[:, :1], image[:, -1:])
    padded = tf.concat([first, first, image, last, last], axis=axis)
    # Rolled by `whole`; what comes round from the other end lies outside the image and is filled.
    moved = tf.roll(padded, -tf.cast(whole, tf.int32), axis=axis)
    moved = tf.cast(tf.reshape(moved, [padded.shape[0], -1]), tf.float32)
    step = 1 if axis == 0 else 3  # numbers between neighbours along the axis
    starts = [step * (tap + 1) for tap in range(4)]
    count = step * length
    taps = [moved[start : start + count] if axis == 0 else moved[:, start : start + count] for start in starts]
    weights = _weights(offset - whole, bicubic)
    levels = tf.add_n([weight * tap for weight, tap in zip(weights, taps, strict=True)])
    points = np.repeat(np.arange(length, dtype=np.float32) + 0.5, step) + offset
    inside = (points >= 0) & (points < length)
    return _finish(levels, inside[:, None] if axis == 0 else inside, fill, image.shape)


def _weights(fraction: tf.Tensor, bicubic: tf.Tensor) -> list[tf.Tensor]:
    """Weights of the pixels at -1, 0, 1 and 2 around a point `fraction` (any shape, 0..1) beyond pixel 0."""
    powers = tf.stack([tf.ones_like(fraction), fraction, fraction**2, fraction**3])
    kernel = tf.where(bicubic, _EITHER[True], _EITHER[False])
    return tf.unstack(tf.tensordot(kernel, powers, axes=[[0], [0]]))


def _interpolate(image: tf.Tensor, x: tf.Tensor, y: tf.Tensor, kernel: np.ndarray) -> tf.Tensor:
    """image uint8 [H, W, 3] at the points x, y [P] -> float32 [P, 3]; kernel [powers, taps].

    Coordinates in pixels, the first pixel reaching from 0 to 1.
    """
    height, width, _ = image.shape
    taps = kernel.shape[1]  # 2 or 4
    table, columns = _windows(image, taps)
    left, top = tf.math.floor(x - 0.5), tf.math.floor(y - 0.5)
    powers_x, powers_y = (
        tf.stack([tf.ones_like(part), part, part * part, part * part * part][: len(kernel)])
        for part in (x - 0.5 - left, y - 0.5 - top)
    )
    weights_x = tf.matmul(powers_x, np.repeat(kernel, 3, axis=1), transpose_a=True)  # [P, taps * 3]
    weights_y = tf.unstack(tf.matmul(kernel.T, powers_y))  # taps of [P]
    column = tf.clip_by_value(tf.cast(left, tf.int32), -1, width - 1) + 1
    first = tf.bitwise.bitwise_and(column, taps - 1) * (table.shape[0] // taps)
    first += tf.bitwise.right_shift(column, taps.bit_length() - 1)  # column // taps
    top = tf.cast(top, tf.int32)
    lines = []
    for tap in range(taps):
        row = tf.clip_by_value(top + (tap + 1 - taps // 2), 0, height - 1) * (columns // taps)
        lines.append(tf.cast(tf.gather(table, first + row), tf.float32) * weights_y[tap][:, None])
    return tf.matmul(tf.add_n(lines) * weights_x, np.tile(np.eye(3, dtype=np.float32), [taps, 1]))


def _windows(image: tf.Tensor, taps: int) -> tuple[tf.Tensor, int]:
    """Every run of `taps` neighbouring pixels as one row of a table: uint8 [taps * R, taps * 3] and the padded width.

    The run that starts at pixel s of the padded image (numbered row by row) is row (s % taps) * R + s // taps: `taps`
    copies of the image, each starting one pixel later, cost less than gathering pixel by pixel.
    """
    height, width, _ = image.shape
    border = taps // 2
    surplus = -(width + 2 * border) % taps
    padded = tf.concat([image[:, :1]] * border + [image] + [image[:, -1:]] * (border + surplus), axis=1)
    columns = width + 2 * border + surplus
    pixels = tf.concat([tf.reshape(padded, [-1]), tf.zeros([3 * taps], tf.uint8)], axis=0)
    count = 3 * height * columns
    copies = [tf.reshape(pixels[3 * first : 3 * first + count], [-1, 3 * taps]) for first in range(taps)]
    return tf.concat(copies, axis=0), columns


def _finish(levels: tf.Tensor, inside: tf.Tensor, fill: Fill, shape: tf.TensorShape) -> tf.Tensor:
    """levels float32 [H, W * 3], inside (true or 1) of that shape or broadcast to it -> uint8 [H, W, 3]."""
    inside = tf.cast(inside, tf.float32)  # TensorFlow is several times faster with these than with uint8
    filled = np.tile(np.array(fill, np.float32), shape[1])
    # Pillow cuts to whole levels; its float64 leaves even surfaces exact, so that a rounding error far below a level
    # must not cost one here: cut after adding 0.001, which is rounding after taking away 0.499.
    levels = (levels - filled) * inside + (filled - 0.499)
    return tf.reshape(resample.to_levels(levels), shape)
