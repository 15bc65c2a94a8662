"""Resizing as Pillow does it, as banded matrix products in TensorFlow.

Pillow (Resample.c) resizes along the rows first, rounds to whole grey levels, then resizes along the columns. Its
kernels widen when the image shrinks (antialiasing), are cut at the image's border and normalised to a sum of 1. The
same order and rounding here keep every pixel within one grey level of Pillow, nearly all of them equal.

Each output pixel sees a few neighbouring input pixels, so the sampling matrix is a band. It is multiplied in blocks of
neighbouring output pixels, each with the window of input pixels that the block sees: a few percent of the dense
product, and about as fast as TensorFlow's own resize, which keeps fractions between the two directions.
"""

import numpy as np
import tensorflow as tf

_BLOCK = 16  # output pixels that share a window; 8 to 16 were fastest at 224


def resize(
    image: tf.Tensor,
    size: tuple[int, int],
    bicubic: bool | tf.Tensor,
    flip: bool | tf.Tensor = False,
    resized: tf.Tensor | None = None,
    corner: tf.Tensor | None = None,
) -> tf.Tensor:
    """image uint8 [h, w, 3] -> uint8 [H, W, 3], as `Image.resize` with antialiasing.

    size (H, W) is static, in pixels. bicubic: Keys' kernel with a = -0.5, else the triangle (bilinear). flip mirrors
    the result left to right at no cost. With `resized` [2] and `corner` [2] (int32, rows and columns) the result is the
    part of size (H, W) at `corner` of the image resized to `resized`; the rest is not computed.
    """
    shape = tf.shape(image)
    resized = tf.constant(size, tf.int32) if resized is None else resized
    corner = tf.zeros([2], tf.int32) if corner is None else corner
    rows, columns = _windows(shape[:2], resized, corner, size, bicubic, flip)
    pixels = _resize_columns(tf.reshape(image, [shape[0], shape[1] * 3]), columns, size[1])
    return tf.reshape(_resize_rows(pixels, rows, size[0]), [*size, 3])


def _resize_columns(pixels: tf.Tensor, windows: tuple[tf.Tensor, tf.Tensor], width: int) -> tf.Tensor:
    """pixels uint8 [h, w * 3], windows of the width W -> uint8 [h, W * 3].

    The three channels go through one product with each weight spread over a 3 x 3 identity: two thirds of it are
    zeros, which still costs less than transposing the image.
    """
    starts, weights = windows
    blocks, reach, block = weights.shape[0], tf.shape(weights)[1], weights.shape[2]
    spread = np.einsum("st,cd->sctd", np.eye(block, dtype=np.float32), np.eye(3, dtype=np.float32))
    matrices = tf.matmul(tf.reshape(weights, [-1, block]), spread.reshape(block, 9 * block))
    matrices = tf.unstack(tf.reshape(matrices, [blocks, 3 * reach, 3 * block]))
    seen = tf.stack([tf.shape(pixels)[0], 3 * reach])
    corners = tf.unstack(tf.stack([tf.zeros_like(starts), 3 * starts], axis=1))
    parts = [
        to_levels(tf.matmul(tf.cast(tf.slice(pixels, corner, seen), tf.float32), matrix))
        for corner, matrix in zip(corners, matrices, strict=True)
    ]
    return tf.ensure_shape(tf.concat(parts, axis=1)[:, : 3 * width], [None, 3 * width])


def _resize_rows(pixels: tf.Tensor, windows: tuple[tf.Tensor, tf.Tensor], height: int) -> tf.Tensor:
    """pixels uint8 [h, W * 3], windows of the height H -> uint8 [H, W * 3]."""
    starts, weights = windows
    blocks, block, width = weights.shape[0], weights.shape[1], pixels.shape[1]
    seen = tf.gather(pixels, starts[:, None] + tf.range(tf.shape(weights)[2]))  # whole rows: quick to copy
    levels = tf.matmul(weights, tf.cast(seen, tf.float32))
    return tf.reshape(to_levels(levels), [blocks * block, width])[:height]


def to_levels(levels: tf.Tensor) -> tf.Tensor:
    """Grey levels float32 -> uint8, rounded half up and kept in 0..255: what Pillow does, in one operation."""
    levels = tf.raw_ops.QuantizeV2(input=levels, min_range=0.0, max_range=255.0, T=tf.quint8).output
    return tf.bitcast(levels, tf.uint8)


def _windows(
    lengths: tf.Tensor,
    resized: tf.Tensor,
    corner: tf.Tensor,
    size: tuple[int, int],
    bicubic: bool | tf.Tensor,
    flip: bool | tf.Tensor,
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """What each output pixel sees: starts [blocks] int32 and weights, for rows and for columns.

    Weights are [blocks, block, reach] for rows and [blocks, reach, block] for columns, as their products need them
    (transposing such a small array takes TensorFlow's oneDNN operation longer than all else here: it compiles a kernel
    for each new shape).
    lengths [2]: sides of the input; resized [2]: what they would become; corner [2]: the first output pixels wanted.
    Positions in float64 as in Pillow: a 32-bit position in a photograph of 4,000 pixels is off by 1 / 4096.
    """
    block = min(_BLOCK, *size)
    blocks = [-(-side // block) for side in size]
    outputs = np.minimum(np.arange(max(blocks) * block), np.array(size)[:, None] - 1)
    mirror = np.stack([0 * outputs[0], size[1] - 1 - 2 * outputs[1]])  # from each column to its mirror image
    flip = tf.cast(flip, tf.float64)
    outputs = (outputs + 0.5) + flip * mirror + tf.cast(corner, tf.float64)[:, None]
    scale = tf.cast(lengths, tf.float64) / tf.cast(resized, tf.float64)
    widening = tf.maximum(scale, 1.0)
    support = widening * tf.where(bicubic, tf.constant(2.0, tf.float64), 1.0)
    centers = tf.reshape(outputs * scale[:, None], [2, max(blocks), block])
    reach = tf.cast(tf.math.ceil((block - 1) * scale + 2 * support), tf.int32) + 1
    reach = tf.minimum(reach, lengths)
    starts = tf.cast(tf.math.floor(tf.reduce_min(centers, axis=2) - support[:, None]), tf.int32)
    starts = tf.clip_by_value(starts, 0, (lengths - reach)[:, None])
    nearest = (tf.cast(starts, tf.float64) + 0.5)[..., None] - centers  # from each output pixel to its window's first
    nearest = tf.cast(nearest / widening[:, None, None], tf.float32)  # small numbers: 32 bits will do from here
    step = tf.cast(1.0 / widening, tf.float32)
    seen = []
    for axis in range(2):
        along = 2 - axis  # the input pixels' axis of the weights
        steps = step[axis] * tf.range(tf.cast(reach[axis], tf.float32))
        steps = steps if axis == 0 else steps[:, None]
        weights = _kernel(tf.abs(tf.expand_dims(nearest[axis, : blocks[axis]], along) + steps), bicubic)
        seen.append((starts[axis, : blocks[axis]], weights / tf.reduce_sum(weights, axis=along, keepdims=True)))
    return seen


def _kernel(distance: tf.Tensor, bicubic: bool | tf.Tensor) -> tf.Tensor:
    """Weights at distances >= 0 (any shape) in pixels: Keys' cubic with a = -0.5, or the triangle."""
    if isinstance(bicubic, bool):
        return _cubic(distance) if bicubic else _triangle(distance)
    return tf.cond(bicubic, lambda: _cubic(distance), lambda: _triangle(distance))


def _triangle(distance: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1.0 - distance, 0.0)


def _cubic(distance: tf.Tensor) -> tf.Tensor:
    near, far = tf.minimum(distance, 1.0), tf.clip_by_value(distance, 1.0, 2.0)  # each piece is 0 at its ends
    near = (1.5 * near - 2.5) * near * near + 1.0
    return near + ((-0.5 * far + 2.5) * far - 4.0) * far + 2.0
