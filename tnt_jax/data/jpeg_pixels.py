"""From a JPEG's quantised coefficients to pixels, in compiled loops, level for level as libjpeg does it.

The inverse cosine transform is libjpeg's accurate one in whole numbers (Loeffler, Ligtenberg and Moschytz, "Practical
fast 1-D DCT algorithms with 11 multiplications", 1989; 13 binary places, 2 kept between the directions), halved colours
are smoothed by its triangle filter ("fancy upsampling"), and YCbCr becomes RGB by JFIF's equations with 16 binary
places. One processor instruction works on the sixteen blocks that stand side by side (jpeg_codes.py).
"""

import numpy as np

from tnt_jax.data.compiled import compiled

_LANES = 16  # blocks side by side
_PLACES = 13  # binary places of the transform's factors
_KEPT = 2  # binary places kept between its two directions
_ORDER = np.array(  # zigzag: coefficients as they come in a file
    [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28]
    + [35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54]
    + [47, 55, 62, 63]
)


@compiled
def planes(coefficients, data, quantization, rows, groups, levels):
    """Fills levels uint8 [n], a component's lines after each other, from coefficients int16 [groups, 65 * 16].

    quantization, rows, groups: int64 [components], where a component's table begins in data uint8 [n] (the file), its
    rows of blocks, the groups of blocks in a row. A line is groups * 128 levels long.
    """
    steps, between = np.empty(64, np.int32), np.empty((64, _LANES), np.int32)
    group, start = 0, 0
    for component in range(len(rows)):
        for place in range(64):
            steps[_ORDER[place]] = data[quantization[component] + place]
        length = groups[component] * 8 * _LANES
        for row in range(rows[component]):
            for place in range(groups[component]):
                _columns(coefficients[group], steps, between)
                _lines(between, levels, start + place * 8 * _LANES, length)
                group += 1
            start += 8 * length


@compiled
def _columns(coefficients, steps, between):
    half, places = np.int32(1 << (_PLACES - _KEPT - 1)), np.int32(_PLACES - _KEPT)
    for column in range(8):
        s0, s1, s2, s3 = steps[column], steps[column + 8], steps[column + 16], steps[column + 24]
        s4, s5, s6, s7 = steps[column + 32], steps[column + 40], steps[column + 48], steps[column + 56]
        at = column * _LANES
        for lane in range(_LANES):
            x0 = np.int32(coefficients[at + lane]) * s0
            x1 = np.int32(coefficients[at + lane + 8 * _LANES]) * s1
            x2 = np.int32(coefficients[at + lane + 16 * _LANES]) * s2
            x3 = np.int32(coefficients[at + lane + 24 * _LANES]) * s3
            x4 = np.int32(coefficients[at + lane + 32 * _LANES]) * s4
            x5 = np.int32(coefficients[at + lane + 40 * _LANES]) * s5
            x6 = np.int32(coefficients[at + lane + 48 * _LANES]) * s6
            x7 = np.int32(coefficients[at + lane + 56 * _LANES]) * s7
            y0, y1, y2, y3, y4, y5, y6, y7 = _transform(x0, x1, x2, x3, x4, x5, x6, x7)
            between[column, lane] = (y0 + half) >> places
            between[column + 8, lane] = (y1 + half) >> places
            between[column + 16, lane] = (y2 + half) >> places
            between[column + 24, lane] = (y3 + half) >> places
            between[column + 32, lane] = (y4 + half) >> places
            between[column + 40, lane] = (y5 + half) >> places
            between[column + 48, lane] = (y6 + half) >> places
            between[column + 56, lane] = (y7 + half) >> places


@compiled
def _lines(between, levels, start, length):
    places = np.int32(_PLACES + _KEPT + 3)
    half = np.int32((1 << (_PLACES + _KEPT + 2)) + (128 << (_PLACES + _KEPT + 3)))
    black, white = np.int32(0), np.int32(255)
    for row in range(8):
        line = levels[start + row * length : start + row * length + 8 * _LANES]
        first = 8 * row
        for lane in range(_LANES):
            y0, y1, y2, y3, y4, y5, y6, y7 = _transform(
                between[first, lane],
                between[first + 1, lane],
                between[first + 2, lane],
                between[first + 3, lane],
                between[first + 4, lane],
                between[first + 5, lane],
                between[first + 6, lane],
                between[first + 7, lane],
            )
            line[8 * lane] = min(max((y0 + half) >> places, black), white)
            line[8 * lane + 1] = min(max((y1 + half) >> places, black), white)
            line[8 * lane + 2] = min(max((y2 + half) >> places, black), white)
            line[8 * lane + 3] = min(max((y3 + half) >> places, black), white)
            line[8 * lane + 4] = min(max((y4 + half) >> places, black), white)
            line[8 * lane + 5] = min(max((y5 + half) >> places, black), white)
            line[8 * lane + 6] = min(max((y6 + half) >> places, black), white)
            line[8 * lane + 7] = min(max((y7 + half) >> places, black), white)


@compiled
def _transform(x0, x1, x2, x3, x4, x5, x6, x7):
    """Eight int32 coefficients -> eight levels, with 13 binary places more (without the factor sqrt(1/8))."""
    both = (x2 + x6) * np.int32(4433)
    c, d = both - x6 * np.int32(15137), both + x2 * np.int32(6270)
    a, b = (x0 + x4) << np.int32(_PLACES), (x0 - x4) << np.int32(_PLACES)
    e0, e1, e2, e3 = a + d, b + c, b - c, a - d
    z1, z2, z3, z4 = x7 + x1, x5 + x3, x7 + x3, x5 + x1
    z5 = (z3 + z4) * np.int32(9633)
    z1, z2 = z1 * np.int32(-7373), z2 * np.int32(-20995)
    z3, z4 = z3 * np.int32(-16069) + z5, z4 * np.int32(-3196) + z5
    o0 = x7 * np.int32(2446) + z1 + z3
    o1 = x5 * np.int32(16819) + z2 + z4
    o2 = x3 * np.int32(25172) + z2 + z3
    o3 = x1 * np.int32(12299) + z1 + z4
    return e0 + o3, e1 + o2, e2 + o1, e3 + o0, e3 - o0, e2 - o1, e1 - o2, e0 - o3


@compiled
def pixels(levels, sizes, corners, shape, halved, image):
    """Fills image uint8 [h, w, 3] from levels as in `planes`.

    sizes int64 [components, 2]: lines, and levels in a line, of a component that `levels` holds. corners [components, 2]:
    where these begin in the whole component. shape: (top, left) of the image in the whole, and the sides of a whole
    halved component (the number of its real levels). halved: rows and columns, whether the colours have half of them.
    """
    height, width = image.shape[:2]
    top, left = shape[0], shape[1]
    wider_blue, wider_red = np.empty(width, np.uint8), np.empty(width, np.uint8)
    sums = np.empty(width + 4, np.int32)
    for row in range(height):
        at = (top + row - corners[0, 0]) * sizes[0, 1] + left - corners[0, 1]
        light = levels[at : at + width]
        if len(sizes) == 1:
            for column in range(width):
                image[row, column, 0] = light[column]
                image[row, column, 1] = light[column]
                image[row, column, 2] = light[column]
            continue
        start = sizes[0, 0] * sizes[0, 1]
        blue, red = wider_blue, wider_red
        for component in range(1, 3):
            line = blue if component == 1 else red
            length = sizes[component, 1]
            if halved[1]:
                y = (top + row) >> 1 if halved[0] else top + row
                other = y
                if halved[0]:
                    other = min(max(y + (1 if (top + row) & 1 else -1), 0), shape[2] - 1)
                near = levels[start + (y - corners[component, 0]) * length :][:length]
                far = levels[start + (other - corners[component, 0]) * length :][:length]
                _widen(near, far, left, corners[component, 1], shape[3], halved[0], sums, line)
            else:
                at = start + (top + row - corners[component, 0]) * length + left - corners[component, 1]
                line = levels[at : at + width]
            if component == 1:
                blue = line
            else:
                red = line
            start += sizes[component, 0] * length
        _colors(light, blue, red, image[row].reshape(-1))


@compiled
def _widen(near, far, left, corner, real, both, sums, line):
    """Fills line uint8 [w]: columns left, left + 1, ... of a component's doubled line.

    near, far: its line and the next nearest one, of which column `corner` of `real` ones comes first. both: doubled in
    rows as well, so that three quarters of the near and a quarter of the far line count.
    """
    first = (left >> 1) - 1
    for place in range((line.size + 1) // 2 + 3):
        column = min(max(first + place, 0), real - 1) - corner
        column = min(max(column, 0), near.size - 1)
        sums[place] = 3 * np.int32(near[column]) + np.int32(far[column])
    even, odd = (8, 7) if both else (4, 8)
    for column in range(line.size):
        place = ((left + column) >> 1) - first
        if (left + column) & 1:
            line[column] = (3 * sums[place] + sums[place + 1] + odd) >> 4
        else:
            line[column] = (3 * sums[place] + sums[place - 1] + even) >> 4


@compiled
def _colors(light, blue, red, image):
    """light, blue and red uint8 [w] -> image uint8 [3 w]."""
    half, places, middle = np.int32(1 << 15), np.int32(16), np.int32(128)
    black, white = np.int32(0), np.int32(255)
    for column in range(light.size):
        y, b, r = np.int32(light[column]), np.int32(blue[column]) - middle, np.int32(red[column]) - middle
        image[3 * column] = min(max(y + ((np.int32(91881) * r + half) >> places), black), white)
        green = (half - np.int32(22554) * b - np.int32(46802) * r) >> places
        image[3 * column + 1] = min(max(y + green, black), white)
        image[3 * column + 2] = min(max(y + ((np.int32(116130) * b + half) >> places), black), white)
