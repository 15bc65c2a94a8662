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
    height, width, _ = image.shape
    moved = np.empty((height, width, 3), np.uint8)
    line = np.empty((width + 3) * 3, np.uint8)  # the row as its points see it: from -1 of the first to 2 of the last
    parts, values = np.empty(3 * width), np.empty(3 * width)
    for row in range(height):
        whole = int(math.floor(offsets[row]))
        for column in range(width):
            part = column + 0.5 + offsets[row] - 0.5 - (column + whole)  # rounded as Pillow's is
            for channel in range(3):
                parts[3 * column + channel] = part
        for column in range(width + 3):
            source = min(max(column + whole - 1, 0), width - 1)
            for channel in range(3):
                line[3 * column + channel] = image[row, source, channel]
        if bicubic:
            _cubic(line[:-9], line[3:-6], line[6:-3], line[9:], parts, values)
        else:
            _linear(line[3:-6], line[6:-3], parts, values)
        _cut(values, moved[row])
        for column in range(width):
            if not 0 <= column + 0.5 + offsets[row] < width:
                _paint(moved[row, column], fill)
    return moved


@compiled
def _along_columns(image, offsets, bicubic, fill):
    """Column x moves up by offsets[x] pixels, float64 [W]."""
    height, width, _ = image.shape
    moved = np.empty((height, width, 3), np.uint8)
    whole = np.floor(offsets)
    parts, values = np.empty(3 * width), np.empty(3 * width)
    lines = np.empty((4, 3 * width), np.uint8)
    for row in range(height):
        for column in range(width):
            part = row + 0.5 + offsets[column] - 0.5 - (row + whole[column])  # rounded as Pillow's is
            for channel in range(3):
                parts[3 * column + channel] = part
        for tap in range(4):
            for column in range(width):
                source = min(max(row + int(whole[column]) + tap - 1, 0), height - 1)
                for channel in range(3):
                    lines[tap, 3 * column + channel] = image[source, column, channel]
        if bicubic:
            _cubic(lines[0], lines[1], lines[2], lines[3], parts, values)
        else:
            _linear(lines[1], lines[2], parts, values)
        _cut(values, moved[row])
        for column in range(width):
            if not 0 <= row + 0.5 + offsets[column] < height:
                _paint(moved[row, column], fill)
    return moved


@compiled
def _rotate(image, cosine, sine, shift_x, shift_y, bicubic, fill):
    height, width, _ = image.shape
    turned = np.empty((height, width, 3), np.uint8)
    near = np.empty((4, 4, 3 * width), np.uint8)  # the neighbours of a row's points, by row and column
    parts_x, parts_y = np.empty(3 * width), np.empty(3 * width)
    lines, values = np.empty((4, 3 * width)), np.empty(3 * width)
    first, last = (0, 4) if bicubic else (1, 3)
    for row in range(height):
        for column in range(width):
            x = cosine * (column + 0.5) - sine * (row + 0.5) + shift_x - 0.5
            y = sine * (column + 0.5) + cosine * (row + 0.5) + shift_y - 0.5
            left, top = int(math.floor(x)), int(math.floor(y))
            for channel in range(3):
                parts_x[3 * column + channel] = x - left
                parts_y[3 * column + channel] = y - top
            for down_tap in range(first, last):
                source_row = min(max(top + down_tap - 1, 0), height - 1)
                for right_tap in range(first, last):
                    source = min(max(left + right_tap - 1, 0), width - 1)
                    for channel in range(3):
                        near[down_tap, right_tap, 3 * column + channel] = image[source_row, source, channel]
        for tap in range(first, last):
            if bicubic:
                _cubic(near[tap, 0], near[tap, 1], near[tap, 2], near[tap, 3], parts_x, lines[tap])
            else:
                _linear(near[tap, 1], near[tap, 2], parts_x, lines[tap])
        if bicubic:
            _cubic(lines[0], lines[1], lines[2], lines[3], parts_y, values)
        else:
            _linear(lines[1], lines[2], parts_y, values)
        _cut(values, turned[row])
        for column in range(width):
            x = cosine * (column + 0.5) - sine * (row + 0.5) + shift_x
            y = sine * (column + 0.5) + cosine * (row + 0.5) + shift_y
            if not (0 <= x < width and 0 <= y < height):
                _paint(turned[row, column], fill)
    return turned


@compiled
def _cubic(levels0, levels1, levels2, levels3, parts, values):
    """Lines of levels at -1, 0, 1 and 2 -> values at `parts` of the way from 0 to 1 (Geometry.c's BICUBIC)."""
    for place in range(values.size):
        level0, level1 = float(levels0[place]), float(levels1[place])
        level2, level3 = float(levels2[place]), float(levels3[place])
        part = parts[place]
        second = 2 * (level0 - level1) + level2 - level3
        third = level1 - level0 - level2 + level3
        values[place] = level1 + part * (level2 - level0 + part * (second + part * third))


@compiled
def _linear(levels0, levels1, parts, values):
    """Lines of levels at 0 and 1 -> values at `parts` of the way."""
    for place in range(values.size):
        level0, level1 = float(levels0[place]), float(levels1[place])
        values[place] = level0 + (level1 - level0) * parts[place]


@compiled
def _cut(values, row):
    """Clips and cuts values [W * 3] to a row of levels [W, 3]."""
    levels = row.reshape(-1)
    for place in range(values.size):
        levels[place] = np.uint8(min(max(values[place], 0.0), 255.0))


@compiled
def _paint(pixel, fill):
    for channel in range(3):
        pixel[channel] = fill[channel]
