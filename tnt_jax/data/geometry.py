"""Rotation, shear and translation of one image as Pillow's affine transform does them: uint8 [H, W, 3] -> the same.

Output pixel (x, y) shows the point (a (x + 1/2) + b (y + 1/2) + c, d (x + 1/2) + e (y + 1/2) + f) of the input. Points
outside the input take the fill colour; inside it, neighbours beyond the border repeat the border's pixels, and the
result is clipped and cut (not rounded) to whole levels. Bilinear weighs 2 x 2 pixels. Bicubic weighs 4 x 4 with Keys'
kernel, a = -1 here where Pillow's resize has a = -0.5. Sources: Pillow's Geometry.c and Image.rotate. H and W static.

A shear or a translation moves whole pixels along one axis and interpolates along it with one set of weights for each
line, which is several times cheaper than the general case that a rotation needs.
"""

import math

import numpy as np
import tensorflow as tf

Fill = tuple[int, int, int]

# Weights of neighbouring pixels as polynomials of the distance from the pixel left of the point: [powers, pixels]
_LINEAR = np.array([[1, 0], [-1, 1]], np.float32)
_CUBIC = np.array([[0, 1, 0, 0], [-1, 0, 1, 0], [2, -2, 1, -1], [-1, 1, -1, 1]], np.float32)


def shear_x(image: tf.Tensor, factor: tf.Tensor, bicubic: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Row y moves left by factor * (y + 1/2) pixels; factor float32 scalar."""
    return _move_rows(image, factor * (tf.range(image.shape[0], dtype=tf.float32) + 0.5), bicubic, fill)


def shear_y(image: tf.Tensor, factor: tf.Tensor, bicubic: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Column x moves up by factor * (x + 1/2) pixels; factor float32 scalar."""
    return _transposed(shear_x(_transposed(image), factor, bicubic, fill))


def translate_x(image: tf.Tensor, share: tf.Tensor, bicubic: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Moves the image left by `share` (float32 scalar) of its width."""
    height, width, _ = image.shape
    return _move_rows(image, tf.fill([height], share * width), bicubic, fill)


def translate_y(image: tf.Tensor, share: tf.Tensor, bicubic: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Moves the image up by `share` (float32 scalar) of its height."""
    return _transposed(translate_x(_transposed(image), share, bicubic, fill))


def _transposed(image: tf.Tensor) -> tf.Tensor:
    return tf.transpose(image, [1, 0, 2])


def _move_rows(image: tf.Tensor, offsets: tf.Tensor, bicubic: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Output pixel (x, y) shows the point x + 1/2 + offsets[y]; offsets float32 [H], in pixels."""
    height, width, _ = image.shape
    whole = tf.math.floor(offsets)
    kernel = tf.where(bicubic, _CUBIC, np.pad(_LINEAR, [[0, 2], [1, 1]]))
    powers = tf.stack([(offsets - whole) ** power for power in range(4)], axis=1)
    weights = tf.unstack(tf.matmul(powers, kernel), axis=1)  # 4 of [H]
    columns = tf.cast(whole, tf.int32)[:, None] + np.arange(-1, width + 2, dtype=np.int32)
    columns = tf.clip_by_value(columns, 0, width - 1) + np.arange(height, dtype=np.int32)[:, None] * width
    moved = tf.gather(tf.reshape(image, [height * width, 3]), columns)
    moved = tf.cast(tf.reshape(moved, [height, (width + 3) * 3]), tf.float32)
    levels = tf.add_n([weights[tap][:, None] * moved[:, 3 * tap : 3 * (tap + width)] for tap in range(4)])
    points = np.repeat(np.arange(width, dtype=np.float32) + 0.5, 3) + offsets[:, None]
    return _finish(levels, (points >= 0) & (points < width), fill, image.shape)


def _finish(levels: tf.Tensor, inside: tf.Tensor, fill: Fill, shape: tf.TensorShape) -> tf.Tensor:
    """levels float32 [H, W * 3], inside bool [H, W * 3] -> uint8 [H, W, 3]."""
    # Pillow's float64 leaves even surfaces exact; a rounding error below a whole level must not cost one here.
    levels = tf.cast(tf.clip_by_value(levels + 1e-3, 0.0, 255.0), tf.uint8)
    inside = tf.cast(inside, tf.uint8)
    filled = np.tile(np.array(fill, np.uint8), shape[1])
    return tf.reshape(levels * inside + filled * (1 - inside), shape)


def rotate(image: tf.Tensor, degrees: tf.Tensor, bicubic: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Turns the image around its centre, counter-clockwise, by `degrees` (float32 scalar)."""
    height, width, _ = image.shape
    angle = degrees * (math.pi / 180)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    right = np.tile(np.arange(width, dtype=np.float32) + (0.5 - width / 2), height)
    down = np.repeat(np.arange(height, dtype=np.float32) + (0.5 - height / 2), width)
    x = cosine * right - sine * down + width / 2
    y = cosine * down + sine * right + height / 2
    levels = tf.cond(bicubic, lambda: _interpolate(image, x, y, _CUBIC), lambda: _interpolate(image, x, y, _LINEAR))
    inside = tf.cast((x >= 0) & (x < width) & (y >= 0) & (y < height), tf.float32)
    inside = tf.matmul(inside[:, None], tf.ones([1, 3])) > 0  # three channels; quicker than tf.repeat
    return _finish(tf.reshape(levels, [height, -1]), tf.reshape(inside, [height, -1]), fill, image.shape)


def _interpolate(image: tf.Tensor, x: tf.Tensor, y: tf.Tensor, kernel: np.ndarray) -> tf.Tensor:
    """image uint8 [H, W, 3] at the points x, y [P] -> float32 [P, 3]; kernel [powers, taps].

    Coordinates in pixels, the first pixel reaching from 0 to 1.
    """
    height, width, _ = image.shape
    taps = kernel.shape[1]
    left, top = tf.math.floor(x - 0.5), tf.math.floor(y - 0.5)
    powers_x, powers_y = (
        tf.stack([(at - 0.5 - low) ** p for p in range(len(kernel))]) for at, low in ((x, left), (y, top))
    )
    weights_y = tf.matmul(kernel.T, powers_y)  # [taps, P]
    weights_x = tf.matmul(powers_x, np.repeat(kernel, 3, axis=1), transpose_a=True)  # [P, taps * 3]
    table, columns = _windows(image, taps)
    rows = tf.cast(top, tf.int32) + np.arange(1 - taps // 2, 1 + taps // 2, dtype=np.int32)[:, None]
    starts = (
        tf.clip_by_value(rows, 0, height - 1) * columns + tf.clip_by_value(tf.cast(left, tf.int32), -1, width - 1) + 1
    )
    seen = tf.gather(table, (starts % taps) * (table.shape[0] // taps) + starts // taps)
    column = tf.reduce_sum(tf.cast(seen, tf.float32) * weights_y[:, :, None], axis=0)
    return tf.matmul(column * weights_x, np.tile(np.eye(3, dtype=np.float32), [taps, 1]))


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
