"""Rotation, shear and translation of one image as Pillow's affine transform does them, level for level.

uint8 [H, W, 3] -> uint8 [H, W, 3]. Output pixel (x, y) shows the point (a (x + 1/2) + b (y + 1/2) + c,
d (x + 1/2) + e (y + 1/2) + f) of the input. Points outside the input take the fill colour; inside it, neighbours beyond
the border repeat the border's pixels, and the result is clipped and cut (not rounded) to whole levels. Bilinear weighs
2 x 2 pixels. Bicubic weighs 4 x 4 with Keys' kernel, a = -1 here where Pillow's resize has a = -0.5. All in float64.
Sources: Pillow's Geometry.c and Image.rotate.

A translation and a shear move whole lines of pixels and interpolate along them alone, several times cheaper than the
general case that a rotation needs.
"""

import math

import numpy as np

from tnt_jax.data.compiled import compiled

Fill = tuple[int, int, int]

_BORDER = 2  # pixels around an image that points inside it see


def translate_x(image: np.ndarray, share: float, bicubic: bool, fill: Fill) -> np.ndarray:
    """Moves the image left by `share` of its width."""
    return _along_rows(image, np.full(image.shape[0], share * image.shape[1]), bool(bicubic), _colour(fill))


def translate_y(image: np.ndarray, share: float, bicubic: bool, fill: Fill) -> np.ndarray:
    """Moves the image up by `share` of its height."""
    return _along_columns(image, np.full(image.shape[1], share * image.shape[0]), bool(bicubic), _colour(fill))


def shear_x(image: np.ndarray, factor: float, bicubic: bool, fill: Fill) -> np.ndarray:
    """Row y moves left by factor * (y + 1/2) pixels."""
    return _along_rows(image, factor * (np.arange(image.shape[0]) + 0.5), bool(bicubic), _colour(fill))


def shear_y(image: np.ndarray, factor: float, bicubic: bool, fill: Fill) -> np.ndarray:
    """Column x moves up by factor * (x + 1/2) pixels."""
    return _along_columns(image, factor * (np.arange(image.shape[1]) + 0.5), bool(bicubic), _colour(fill))


def rotate(image: np.ndarray, degrees: float, bicubic: bool, fill: Fill) -> np.ndarray:
    """Turns the image around its centre, counter-clockwise."""
    angle = math.radians(degrees % 360.0)  # the same angle, rounded as Pillow's is
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    down, right = image.shape[0] / 2, image.shape[1] / 2
    shifts = cosine * -right - sine * -down + right, sine * -right + cosine * -down + down
    return _rotate(image, cosine, sine, *shifts, bool(bicubic), _colour(fill))


def _colour(fill: Fill) -> np.ndarray:
    return np.array(fill, np.uint8)


@compiled
def _along_rows(image, offsets, bicubic, fill):
    """Row y moves left by offsets[y] pixels, float64 [H]."""
    (height, width, _), image = image.shape, np.ascontiguousarray(image)
    moved = np.empty((height, width, 3), np.uint8)
    line = np.empty((width + 3) * 3, np.uint8)  # the row as its points see it: from -1 of the first to 2 of the last
    parts, values = np.empty(3 * width), np.empty(3 * width)
    for row in range(height):
        whole = int(math.floor(offsets[row]))
        for column in range(width):
            part = column + 0.5 + offsets[row] - 0.5 - (column + whole)  # rounded as Pillow's is
            parts[3 * column], parts[3 * column + 1], parts[3 * column + 2] = part, part, part
        _fill_line(image[row].reshape(-1), whole - 1, line)
        if bicubic:
            _cubic(line[:-9], line[3:-6], line[6:-3], line[9:], parts, values)
        else:
            _linear(line[3:-6], line[6:-3], parts, values)
        _cut(values, moved[row].reshape(-1))
        column = 0
        while column < width and not 0 <= column + 0.5 + offsets[row] < width:
            _paint(moved[row, column], fill)
            column += 1
        last = width - 1
        while last > column and not 0 <= last + 0.5 + offsets[row] < width:
            _paint(moved[row, last], fill)
            last -= 1
    return moved


@compiled
def _fill_line(levels, first, line):
    """Pixels first, first + 1, ... of levels [3 w], the border's repeated outside -> line [3 n]."""
    width, count = levels.size // 3, line.size // 3
    start = min(max(-first, 0), count)
    end = max(min(width - first, count), start)
    inside = line[3 * start : 3 * end]
    if inside.size:
        source = levels[3 * (start + first) :]
        for place in range(inside.size):
            inside[place] = source[place]
    for column in range(start):
        line[3 * column], line[3 * column + 1], line[3 * column + 2] = levels[0], levels[1], levels[2]
    red, green, blue = levels[3 * width - 3], levels[3 * width - 2], levels[3 * width - 1]
    for column in range(end, count):
        line[3 * column], line[3 * column + 1], line[3 * column + 2] = red, green, blue


@compiled
def _along_columns(image, offsets, bicubic, fill):
    """Column x moves up by offsets[x] pixels, float64 [W]."""
    (height, width, _), image = image.shape, np.ascontiguousarray(image)
    moved = np.empty((height, width, 3), np.uint8)
    whole = np.floor(offsets)
    parts, values = np.empty(3 * width), np.empty(3 * width)
    lines = np.empty((4, 3 * width), np.uint8)
    for row in range(height):
        for column in range(width):
            part = row + 0.5 + offsets[column] - 0.5 - (row + whole[column])  # rounded as Pillow's is
            parts[3 * column], parts[3 * column + 1], parts[3 * column + 2] = part, part, part
        for tap in range(3 if row else 0, 4):  # the other three are those of the row above
            line = lines[(row + tap) % 4]
            for column in range(width):
                source = min(max(row + int(whole[column]) + tap - 1, 0), height - 1)
                for channel in range(3):
                    line[3 * column + channel] = image[source, column, channel]
        near, far = lines[(row + 1) % 4], lines[(row + 2) % 4]
        if bicubic:
            _cubic(lines[row % 4], near, far, lines[(row + 3) % 4], parts, values)
        else:
            _linear(near, far, parts, values)
        _cut(values, moved[row].reshape(-1))
        for column in range(width):
            if not 0 <= row + 0.5 + offsets[column] < height:
                _paint(moved[row, column], fill)
    return moved


@compiled
def _rotate(image, cosine, sine, shift_x, shift_y, bicubic, fill):
    height, width, _ = image.shape
    turned = np.empty((height, width, 3), np.uint8)
    padded, across = _words(np.ascontiguousarray(image)), width + 2 * _BORDER
    places, near = np.empty(width, np.int64), np.empty((16, width), np.uint32)
    parts_x, parts_y, values = np.empty(width), np.empty(width), np.empty((5, width))
    levels = np.empty((3, width), np.uint8)
    for row in range(height):
        for column in range(width):
            x = cosine * (column + 0.5) - sine * (row + 0.5) + shift_x - 0.5
            y = sine * (column + 0.5) + cosine * (row + 0.5) + shift_y - 0.5
            left, top = np.floor(x), np.floor(y)
            parts_x[column], parts_y[column] = x - left, y - top
            left, top = min(max(left, -1.0), width - 1.0), min(max(top, -1.0), height - 1.0)  # others are painted
            places[column] = int(top + (_BORDER - 1)) * across + int(left + (_BORDER - 1))
        _fetch(padded, places, across, bicubic, near)
        for channel in range(3):
            shift = np.uint32(8 * channel)
            if bicubic:
                for down in range(4):
                    words = near[4 * down], near[4 * down + 1], near[4 * down + 2], near[4 * down + 3]
                    _cubic_words(*words, shift, parts_x, values[down])
                _cubic(values[0], values[1], values[2], values[3], parts_y, values[4])
            else:
                _linear_words(near[5], near[6], shift, parts_x, values[0])
                _linear_words(near[9], near[10], shift, parts_x, values[1])
                _linear(values[0], values[1], parts_y, values[4])
            _cut(values[4], levels[channel])
        _interleave(levels[0], levels[1], levels[2], turned[row].reshape(-1))
        for column in range(width):
            x = cosine * (column + 0.5) - sine * (row + 0.5) + shift_x
            y = sine * (column + 0.5) + cosine * (row + 0.5) + shift_y
            if not (0 <= x < width and 0 <= y < height):
                _paint(turned[row, column], fill)
    return turned


@compiled
def _words(image):
    """-> uint32 [(H + 4) * (W + 4)]: a pixel's levels as one word, the border's pixels repeated outside."""
    height, width, _ = image.shape
    words = np.empty((height + 2 * _BORDER, width + 2 * _BORDER), np.uint32)
    for row in range(words.shape[0]):
        levels, line = image[min(max(row - _BORDER, 0), height - 1)].reshape(-1), words[row]
        inside = line[_BORDER:-_BORDER]
        for column in range(width):
            red, green, blue = levels[3 * column], levels[3 * column + 1], levels[3 * column + 2]
            inside[column] = np.uint32(red) | (np.uint32(green) << np.uint32(8)) | (np.uint32(blue) << np.uint32(16))
        line[:_BORDER], line[-_BORDER:] = inside[0], inside[width - 1]
    return words.reshape(-1)


@compiled
def _fetch(words, places, across, bicubic, near):
    """Of words in lines of `across`: 4 x 4 from a point's place on -> near uint32 [16, W]; or only the middle 2 x 2."""
    for down in range(4):
        for right in range(4):
            if bicubic or (0 < down < 3 and 0 < right < 3):
                line, start = near[4 * down + right], down * across + right
                for column in range(places.size):
                    line[column] = words[np.uint64(places[column] + start)]


@compiled
def _interleave(red, green, blue, line):
    for column in range(red.size):
        line[3 * column], line[3 * column + 1], line[3 * column + 2] = red[column], green[column], blue[column]


@compiled
def _cubic_words(words0, words1, words2, words3, shift, parts, values):
    """As `_cubic`, of a channel of words, uint32."""
    for place in range(values.size):
        level0, level1 = _channel(words0[place], shift), _channel(words1[place], shift)
        level2, level3 = _channel(words2[place], shift), _channel(words3[place], shift)
        values[place] = _cubic_value(level0, level1, level2, level3, parts[place])


@compiled
def _linear_words(words0, words1, shift, parts, values):
    """As `_linear`, of a channel of words, uint32."""
    for place in range(values.size):
        level0, level1 = _channel(words0[place], shift), _channel(words1[place], shift)
        values[place] = _linear_value(level0, level1, parts[place])


@compiled
def _channel(word, shift):
    return float(np.int32((word >> shift) & np.uint32(255)))


@compiled
def _cubic_value(level0, level1, level2, level3, part):
    """Levels at -1, 0, 1 and 2 -> the value at `part` of the way from 0 to 1 (Geometry.c's BICUBIC)."""
    second = 2 * (level0 - level1) + level2 - level3
    third = level1 - level0 - level2 + level3
    return level1 + part * (level2 - level0 + part * (second + part * third))


@compiled
def _linear_value(level0, level1, part):
    return level0 + (level1 - level0) * part


@compiled
def _cubic(levels0, levels1, levels2, levels3, parts, values):
    """Lines of levels at -1, 0, 1 and 2 -> values at `parts` of the way from 0 to 1."""
    for place in range(values.size):
        level0, level1 = float(levels0[place]), float(levels1[place])
        level2, level3 = float(levels2[place]), float(levels3[place])
        values[place] = _cubic_value(level0, level1, level2, level3, parts[place])


@compiled
def _linear(levels0, levels1, parts, values):
    """Lines of levels at 0 and 1 -> values at `parts` of the way."""
    for place in range(values.size):
        values[place] = _linear_value(float(levels0[place]), float(levels1[place]), parts[place])


@compiled
def _cut(values, levels):
    """Clips and cuts values to levels, both [n]."""
    for place in range(values.size):
        levels[place] = np.uint8(np.int32(min(max(values[place], 0.0), 255.0)))


@compiled
def _paint(pixel, fill):
    for channel in range(3):
        pixel[channel] = fill[channel]
