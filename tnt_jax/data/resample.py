"""Resizing as Pillow does it, level for level, in compiled loops.

Pillow (Resample.c) resizes along the rows first, rounds to whole grey levels, then resizes along the columns. Its
kernels widen when the image shrinks (antialiasing), are cut at the image's border, normalised to a sum of 1 and rounded
to 22 binary places; sums are whole numbers. All of this is the same here. (From version 12 on Pillow begins with the
columns where that is less work; the recipes' results are from before.)

A line of pixels is the weighted sum of a few lines of the input, one processor instruction for many pixels. So the
image is transposed for the first direction, and back for the second.
"""

import math

import numpy as np

from tnt_jax.data.compiled import compiled

_PLACES = 22  # binary places of the weights
_TAPS = 4  # lines that are added at once
_WORD = 8  # levels in 64 bits, which are transposed together


def resize(
    image: np.ndarray,
    size: tuple[int, int],
    bicubic: bool,
    flip: bool = False,
    resized: tuple[int, int] | None = None,
    corner: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """image uint8 [h, w, 3] -> uint8 [H, W, 3], as `Image.resize` with antialiasing.

    size (H, W) in pixels. bicubic: Keys' kernel with a = -0.5, else the triangle (bilinear). flip mirrors the result
    left to right at no cost. With `resized` and `corner` (rows, columns) the result is the part of size (H, W) at
    `corner` of the image resized to `resized`; the rest is not computed.
    """
    (height, width), (tall, wide), (top, left) = size, size if resized is None else resized, corner
    box = 0, 0, *image.shape[:2]
    sides = int(tall), int(top), height, int(wide), int(left), width
    made = np.empty((height, width, 3), np.uint8)
    _resize(np.ascontiguousarray(image), *box, *sides, bool(bicubic), bool(flip), made)
    return made


@compiled
def resize_boxes(image, boxes, wanted, bicubic, flip, made):
    """Fills made uint8 [k, H, W, 3] with k parts of an image uint8 [h, w, 3], each as `resize` makes it of its part.

    boxes int64 [k, 4]: top, left, height, width. wanted, bicubic, flip: bool [k]; what is not wanted may be anything.
    """
    height, width = made.shape[1], made.shape[2]
    for copy in range(len(boxes)):
        if wanted[copy]:
            top, left, tall, wide = boxes[copy, 0], boxes[copy, 1], boxes[copy, 2], boxes[copy, 3]
            sides = height, 0, height, width, 0, width
            _resize(image, top, left, tall, wide, *sides, bicubic[copy], flip[copy], made[copy])


@compiled
def _weights(length, resized, corner, size, bicubic, flip):
    """What each output pixel sees -> the first input pixel int64 [size] and its and its neighbours' weights, int32.

    length: pixels of the input; resized: what they would become; corner: the first output pixel wanted.
    """
    scale = length / resized
    widening = max(scale, 1.0)
    support = (2.0 if bicubic else 1.0) * widening
    longest = int(math.ceil(support)) * 2 + 1
    starts = np.empty(size, np.int64)
    weights = np.zeros((size, longest + _TAPS), np.int32)
    kernel = np.empty(longest)
    reach = 0
    for output in range(size):
        center = (corner + (size - 1 - output if flip else output) + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        count = min(int(center + support + 0.5), length) - first
        total = 0.0
        for tap in range(count):
            distance = abs((tap + first - center + 0.5) / widening)
            if not bicubic:
                kernel[tap] = max(1.0 - distance, 0.0)
            elif distance < 1.0:
                kernel[tap] = (1.5 * distance - 2.5) * distance * distance + 1.0
            elif distance < 2.0:
                kernel[tap] = (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5
            else:
                kernel[tap] = 0.0
            total += kernel[tap]
        for tap in range(count):
            weight = kernel[tap] / total * (1 << _PLACES)
            weights[output, tap] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        starts[output] = first
        reach = max(reach, count)
    return starts, weights[:, : (reach + _TAPS - 1) // _TAPS * _TAPS]


@compiled
def _resize(image, box_top, box_left, box_height, box_width, tall, top, height, wide, left, width, bicubic, flip, made):
    row_starts, row_weights = _weights(box_height, tall, top, height, bicubic, False)
    column_starts, column_weights = _weights(box_width, wide, left, width, bicubic, flip)
    first = row_starts.min()
    last = min(row_starts.max() + row_weights.shape[1], box_height)
    lines = image.reshape(image.shape[0], image.shape[1] * 3)[box_top + first : box_top + last]
    pixels = _transpose(lines, 3 * box_left, 3 * box_width, 3 * column_weights.shape[1])
    pixels = _sum_lines(pixels, 3, column_starts, column_weights)
    pixels = _transpose(pixels, 0, pixels.shape[1], row_weights.shape[1])
    pixels = _sum_lines(pixels, 1, row_starts - first, row_weights)
    for row in range(height):
        line, levels = pixels[row], made[row].reshape(-1)
        for place in range(levels.size):
            levels[place] = line[place]


@compiled
def _sum_lines(pixels, step, starts, weights):
    """pixels uint8 [lines, n]; starts [size], weights [size, taps] -> uint8 [size * step, n].

    Line s * step + c is the sum of the lines (starts[s] + tap) * step + c. Lines with weight 0 may hold anything.
    """
    size, taps = weights.shape
    levels = np.empty((size * step, pixels.shape[1]), np.uint8)
    sums = np.empty(pixels.shape[1], np.int32)
    for output in range(size):
        for part in range(step):
            sums[:] = 1 << (_PLACES - 1)  # a half: rounding
            for tap in range(0, taps, _TAPS):
                line = (starts[output] + tap) * step + part
                _add_four(sums, pixels[line : line + 3 * step + 1 : step], weights[output, tap : tap + _TAPS])
            _to_levels(sums, levels[output * step + part])
    return levels


@compiled
def _add_four(sums, lines, weights):
    """Adds four weighted lines to the sums int32 [n]. The lines are named first: so the loop becomes vector code."""
    line0, line1, line2, line3 = lines[0], lines[1], lines[2], lines[3]
    weight0, weight1, weight2, weight3 = weights[0], weights[1], weights[2], weights[3]
    for place in range(sums.size):
        sums[place] += (
            weight0 * np.int32(line0[place])
            + weight1 * np.int32(line1[place])
            + weight2 * np.int32(line2[place])
            + weight3 * np.int32(line3[place])
        )


@compiled
def _to_levels(sums, levels):
    for place in range(sums.size):
        levels[place] = min(max(np.int32(sums[place] >> _PLACES), np.int32(0)), np.int32(255))


@compiled
def _transpose(pixels, start, length, more):
    """Columns start, start + 1, ... of uint8 [m, ...] -> uint8 [length or somewhat more, m or somewhat more].

    And `more` lines. What is beyond is anything.

    Eight by eight levels at a time, as eight words whose halves, quarters and eighths change places.
    """
    count = len(pixels)
    tall, wide = (count + _WORD - 1) // _WORD, (length + _WORD - 1) // _WORD
    padded = np.empty((tall * _WORD, wide * _WORD), np.uint8)
    for line in range(count):
        source_line, padded_line = pixels[line][start : start + length], padded[line]
        for place in range(length):  # Numba copies a slice many times slower
            padded_line[place] = source_line[place]
    turned = np.empty((wide * _WORD + more, tall * _WORD), np.uint8)
    source = padded.reshape(-1).view(np.uint64).reshape(tall * _WORD, wide)
    target = turned.reshape(-1).view(np.uint64).reshape(wide * _WORD + more, tall)
    half, quarter, eighth = np.uint64(32), np.uint64(16), np.uint64(8)
    low_half, low_quarter = np.uint64(0x00000000FFFFFFFF), np.uint64(0x0000FFFF0000FFFF)
    low_eighth = np.uint64(0x00FF00FF00FF00FF)
    for down in range(tall):
        for right in range(wide):
            first = down * _WORD
            upper, lower = source[first : first + 4, right], source[first + 4 : first + 8, right]
            a0, a1, a2, a3 = upper[0], upper[1], upper[2], upper[3]
            b0, b1, b2, b3 = lower[0], lower[1], lower[2], lower[3]
            a0, b0 = _exchange(a0, b0, half, low_half)
            a1, b1 = _exchange(a1, b1, half, low_half)
            a2, b2 = _exchange(a2, b2, half, low_half)
            a3, b3 = _exchange(a3, b3, half, low_half)
            a0, a2 = _exchange(a0, a2, quarter, low_quarter)
            a1, a3 = _exchange(a1, a3, quarter, low_quarter)
            b0, b2 = _exchange(b0, b2, quarter, low_quarter)
            b1, b3 = _exchange(b1, b3, quarter, low_quarter)
            a0, a1 = _exchange(a0, a1, eighth, low_eighth)
            a2, a3 = _exchange(a2, a3, eighth, low_eighth)
            b0, b1 = _exchange(b0, b1, eighth, low_eighth)
            b2, b3 = _exchange(b2, b3, eighth, low_eighth)
            first = right * _WORD
            target[first, down], target[first + 1, down] = a0, a1
            target[first + 2, down], target[first + 3, down] = a2, a3
            target[first + 4, down], target[first + 5, down] = b0, b1
            target[first + 6, down], target[first + 7, down] = b2, b3
    return turned


@compiled
def _exchange(upper, lower, bits, mask):
    """The upper word's high parts of `bits` bits change places with the lower word's low ones, which `mask` selects."""
    change = ((upper >> bits) ^ lower) & mask
    return upper ^ (change << bits), lower ^ change
