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

from tnt_jax.data.compiled import compiled, quick

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
    (tall, wide), (top, left) = size if resized is None else resized, corner
    made = np.empty((*size, 3), np.uint8)
    _resize(np.ascontiguousarray(image), int(tall), int(top), int(wide), int(left), bool(bicubic), bool(flip), made)
    return made


@compiled
def resize_boxes(image, boxes, wanted, bicubic, flip, made):
    """Fills made uint8 [k, H, W, 3] with k parts of an image uint8 [h, w, 3], each as `resize` makes it of its part.

    boxes int64 [k, 4]: top, left, height, width. wanted, bicubic, flip: bool [k]; what is not wanted may be anything.
    """
    resize_turned_boxes(_turned(image, made.shape[2]), boxes, wanted, bicubic, flip, made)


@compiled
def resize_turned_boxes(turned, boxes, wanted, bicubic, flip, made):
    """As `resize_boxes`, of an image that is turned: uint8 [lines, places], of turned_shape.

    Line 3 * column + channel holds a column from top to bottom. What is beyond the image may be anything.
    """
    height, width = made.shape[1], made.shape[2]
    for copy in range(len(boxes)):
        if wanted[copy]:
            sides = height, 0, width, 0
            _resize_turned(turned, boxes[copy], *sides, bicubic[copy], flip[copy], made[copy])


@quick
def turned_shape(height, width, new_width):
    """Lines and places of an array for an image turned: whole words, and lines for weights 0 beyond the last column."""
    widest = int(math.ceil(2.0 * max(width / new_width, 1.0))) * 2 + 1 + _TAPS
    return whole_words(3 * width) + 3 * widest, whole_words(height)


@compiled
def turn_words(words, place, target):
    """Eight lines of words uint64 [8, n] -> target uint64 [8 * n or more, m], words at that place of its lines.

    Eight by eight levels at a time, as eight words whose halves, quarters and eighths change places.
    """
    half, quarter, eighth = np.uint64(32), np.uint64(16), np.uint64(8)
    low_half, low_quarter = np.uint64(0x00000000FFFFFFFF), np.uint64(0x0000FFFF0000FFFF)
    low_eighth = np.uint64(0x00FF00FF00FF00FF)
    for right in range(words.shape[1]):
        a0, a1, a2, a3 = words[0, right], words[1, right], words[2, right], words[3, right]
        b0, b1, b2, b3 = words[4, right], words[5, right], words[6, right], words[7, right]
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
        target[first, place], target[first + 1, place] = a0, a1
        target[first + 2, place], target[first + 3, place] = a2, a3
        target[first + 4, place], target[first + 5, place] = b0, b1
        target[first + 6, place], target[first + 7, place] = b2, b3


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
def _resize(image, tall, top, wide, left, bicubic, flip, made):
    box = np.array([0, 0, image.shape[0], image.shape[1]])
    _resize_turned(_turned(image, wide), box, tall, top, wide, left, bicubic, flip, made)


@compiled
def _turned(image, new_width):
    """uint8 [h, w, 3] -> the same turned, for `resize_turned_boxes`."""
    turned = np.empty(turned_shape(image.shape[0], image.shape[1], new_width), np.uint8)
    _turn(image.reshape(image.shape[0], image.shape[1] * 3), turned)
    return turned


@compiled
def _resize_turned(turned, box, tall, top, wide, left, bicubic, flip, made):
    height, width, _ = made.shape
    row_starts, row_weights = _weights(box[2], tall, top, height, bicubic, False)
    column_starts, column_weights = _weights(box[3], wide, left, width, bicubic, flip)
    first = row_starts.min()
    count = min(row_starts.max() + row_weights.shape[1], box[2]) - first
    lines = np.empty((whole_words(3 * width), whole_words(count)), np.uint8)
    _sum_lines(turned[3 * box[1] :], 3, column_starts, column_weights, box[0] + first, count, lines)
    pixels = np.empty((lines.shape[1] + row_weights.shape[1], lines.shape[0]), np.uint8)
    _turn(lines, pixels)
    levels = made.reshape(height, 3 * width)
    _sum_lines(pixels, 1, row_starts - first, row_weights, 0, levels.shape[1], levels)


@compiled
def whole_words(length):
    """The smallest multiple of the levels in a word that is not below a length."""
    return (length + _WORD - 1) // _WORD * _WORD


@compiled
def _turn(pixels, turned):
    """Columns of uint8 [m, n] -> lines of uint8 [whole_words(n) or more, whole_words(m)], beyond which is anything."""
    count, length = pixels.shape
    band = np.empty((_WORD, whole_words(length)), np.uint8)
    words, target = band.view(np.uint64), turned.view(np.uint64)
    for place in range(turned.shape[1] // _WORD):
        for line in range(min(_WORD, count - place * _WORD)):
            source, copy = pixels[place * _WORD + line], band[line]
            for level in range(length):  # Numba copies a slice many times slower
                copy[level] = source[level]
        turn_words(words, place, target)


@compiled
def _sum_lines(pixels, step, starts, weights, start, count, levels):
    """pixels uint8 [lines, n], starts [size], weights [size, taps] -> levels [size * step or more, count or more].

    Line s * step + c is the sum of the lines (starts[s] + tap) * step + c, of each the `count` levels from `start` on.
    Lines with weight 0 may hold anything.
    """
    size, taps = weights.shape
    sums = np.empty(count, np.int32)
    for output in range(size):
        for part in range(step):
            sums[:] = 1 << (_PLACES - 1)  # a half: rounding
            for tap in range(0, taps, _TAPS):
                line = (starts[output] + tap) * step + part
                lines = pixels[line : line + 3 * step + 1 : step]
                _add_four(sums, lines, start, weights[output, tap : tap + _TAPS])
            _to_levels(sums, levels[output * step + part])


@compiled
def _add_four(sums, lines, start, weights):
    """Adds four weighted lines to the sums int32 [n]. The lines are named first: so the loop becomes vector code."""
    line0, line1, line2, line3 = lines[0][start:], lines[1][start:], lines[2][start:], lines[3][start:]
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
def _exchange(upper, lower, bits, mask):
    """The upper word's high parts of `bits` bits change places with the lower word's low ones, which `mask` selects."""
    change = ((upper >> bits) ^ lower) & mask
    return upper ^ (change << bits), lower ^ change
