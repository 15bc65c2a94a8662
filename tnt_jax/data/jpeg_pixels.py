"""From the levels of a JPEG's components to pixels, in compiled loops, level for level as libjpeg does it.

Halved colours are smoothed by its triangle filter ("fancy upsampling"), and YCbCr becomes RGB by JFIF's equations with
16 binary places.
"""

import numpy as np

from tnt_jax.data import jpeg_header, resample
from tnt_jax.data.compiled import compiled
from tnt_jax.data.jpeg_header import LANES

_float32 = np.float32
_int32 = np.int32  # around each result, as Numba calculates with 64 bits


@compiled
def turned_pixels(frame, plan, box, levels, turned):
    """As `pixels`, turned for resample.resize_turned_boxes while they are near the processor."""
    band = np.empty((8, resample.whole_words(3 * box[3])), np.uint8)
    words, target, part = band.view(np.uint64), turned.view(np.uint64), box.copy()
    for place in range((box[2] + 7) // 8):
        part[0], part[2] = box[0] + 8 * place, min(8, box[2] - 8 * place)
        pixels(frame, plan, part, levels, band)
        resample.turn_words(words, place, target)


@compiled
def pixels(frame, plan, box, levels, lines):
    """Fills lines uint8 [h, 3 w or more] with a box (top, left, height, width) from jpeg_blocks.decode's levels.

    frame: read_frame's, plan: jpeg_header.plan's for this box, or for one that holds it and begins in the same column.
    """
    top, left, height, width = box[0], box[1], box[2], box[3]
    down, across = frame[jpeg_header.DOWN], frame[jpeg_header.ACROSS]
    tall = plan[jpeg_header.BOTTOM] - plan[jpeg_header.TOP]
    first, second = plan[jpeg_header.TOP] * 8, plan[jpeg_header.LEFT] * 8  # of the colours' lines and columns
    rows = (frame[jpeg_header.HEIGHT] + down - 1) // down  # those that are real
    columns = (frame[jpeg_header.WIDTH] + across - 1) // across
    light_line, line = plan[jpeg_header.GROUPS] * 8 * LANES, plan[jpeg_header.GROUPS + 1] * 8 * LANES
    blue_start = tall * down * 8 * light_line
    red_start = blue_start + tall * 8 * line
    pairs, within = width // 2 + 1, left & 1
    blue, red, sums = np.empty(2 * pairs, np.uint8), np.empty(2 * pairs, np.uint8), np.empty(pairs + 2, np.int16)
    real = min(columns - second, line)
    for row in range(height):
        at = (top + row - first * down) * light_line + left - second * across
        light, flat = levels[at : at + width], lines[row, : 3 * width]
        if frame[jpeg_header.COMPONENTS] == 1:
            _grey(light, flat)
            continue
        y = (top + row) // down
        at = (y - first) * line
        if across == 1:
            at += left - second
            _colors(light, levels[blue_start + at :][:width], levels[red_start + at :][:width], flat)
            continue
        far = at
        if down == 2:  # the line above or below, whichever is nearer
            far = (min(max(y + (1 if (top + row) & 1 else -1), 0), rows - 1) - first) * line
        for start, wide in ((blue_start, blue), (red_start, red)):
            near_line, far_line = levels[start + at :][:line], levels[start + far :][:line]
            _widen(near_line, far_line, (left >> 1) - second, real, down == 2, sums, wide)
        _colors(light, blue[within:], red[within:], flat)


@compiled
def _widen(near, far, first, real, both, sums, line):
    """Fills line uint8 [2 n] with columns 2 * first, 2 * first + 1, ... of a component's doubled line.

    near, far: its line and the next nearest one. Of their levels the first `real` ones are of the image; first is one
    of them. both: doubled in rows as well, so that three quarters of the near and a quarter of the far line count.
    sums int16 [n + 2] is used inside.
    """
    even, odd = (8, 7) if both else (4, 8)
    start, end = max(1 - first, 0), min(sums.size, real - first + 1)
    near, far, inside = near[first - 1 + start :], far[first - 1 + start :], sums[start:end]
    for place in range(inside.size):
        inside[place] = 3 * near[place] + far[place]
    sums[:start] = sums[start]
    sums[end:] = sums[end - 1]
    before, middle, after = sums[: sums.size - 2], sums[1:], sums[2:]
    for place in range(before.size):
        level = _int32(3 * middle[place])
        line[2 * place] = _int32(level + before[place] + even) >> 4
        line[2 * place + 1] = _int32(level + after[place] + odd) >> 4


@compiled
def _colors(light, blue, red, image):
    """light, blue and red uint8 [w] -> image uint8 [3 w]; the numbers below 2**24 are exact in float32."""
    half, small, black, white = _float32(1 << 15), _float32(2**-16), _int32(0), _int32(255)
    for column in range(light.size):
        y, b, r = _float32(light[column]), _float32(blue[column]) - _float32(128), _float32(red[column]) - _float32(128)
        more_red = np.floor((_float32(91881) * r + half) * small)
        more_green = np.floor((half - _float32(22554) * b - _float32(46802) * r) * small)
        more_blue = np.floor((_float32(116130) * b + half) * small)
        image[3 * column] = min(max(_int32(y + more_red), black), white)
        image[3 * column + 1] = min(max(_int32(y + more_green), black), white)
        image[3 * column + 2] = min(max(_int32(y + more_blue), black), white)


@compiled
def _grey(light, image):
    """light uint8 [w] -> image uint8 [3 w]."""
    for column in range(light.size):
        image[3 * column] = light[column]
        image[3 * column + 1] = light[column]
        image[3 * column + 2] = light[column]
