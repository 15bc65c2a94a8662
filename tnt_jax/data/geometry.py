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
    angle = math.radians(degrees)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    return _rotate(image, cosine, sine, bool(bicubic), _colour(fill))


def _colour(fill: Fill) -> np.ndarray:
    return np.array(fill, np.uint8)


@compiled
def _cubic(level0, level1, level2, level3, part):
    """The levels at -1, 0, 1 and 2 -> the value at `part` of the way from 0 to 1 (Geometry.c's BICUBIC)."""
    first = level2 - level0
    second = 2 * (level0 - level1) + level2 - level3
    third = level1 - level0 - level2 + level3
    return level1 + part * (first + part * (second + part * third))


@compiled
def _linear(level0, level1, part):
    return level0 + (level1 - level0) * part


@compiled
def _cut(value):
    return np.uint8(min(max(value, 0.0), 255.0))


@compiled
def _along_rows(image, offsets, bicubic, fill):
    """Row y moves left by offsets[y] pixels, float64 [H]."""
    height, width, _ = image.shape
    moved = np.empty((height, width, 3), np.uint8)
    line = np.empty((width + 3) * 3)  # the neighbours of the row's points, from -1 of the first to 2 of the last
    levels = np.empty(width * 3, np.uint8)
    for row in range(height):
        whole = int(math.floor(offsets[row]))
        part = offsets[row] - whole
        for column in range(width + 3):
            source = min(max(column + whole - 1, 0), width - 1)
            for channel in range(3):
                line[3 * column + channel] = image[row, source, channel]
        if bicubic:
            for place in range(3 * width):
                levels[place] = _cut(_cubic(line[place], line[place + 3], line[place + 6], line[place + 9], part))
        else:
            for place in range(3 * width):
                levels[place] = _cut(_linear(line[place + 3], line[place + 6], part))
        moved[row] = levels.reshape(width, 3)
        for column in range(width):
            if not 0 <= column + 0.5 + offsets[row] < width:
                moved[row, column] = fill
    return moved


@compiled
def _along_columns(image, offsets, bicubic, fill):
    """Column x moves up by offsets[x] pixels, float64 [W]."""
    height, width, _ = image.shape
    moved = np.empty((height, width, 3), np.uint8)
    for row in range(height):
        for column in range(width):
            if not 0 <= row + 0.5 + offsets[column] < height:
                moved[row, column] = fill
                continue
            whole = math.floor(offsets[column])
            part = offsets[column] - whole
            first = row + int(whole)
            row1, row2 = min(max(first, 0), height - 1), min(max(first + 1, 0), height - 1)
            row0, row3 = min(max(first - 1, 0), height - 1), min(max(first + 2, 0), height - 1)
            for channel in range(3):
                level1, level2 = float(image[row1, column, channel]), float(image[row2, column, channel])
                if bicubic:
                    level0, level3 = float(image[row0, column, channel]), float(image[row3, column, channel])
                    moved[row, column, channel] = _cut(_cubic(level0, level1, level2, level3, part))
                else:
                    moved[row, column, channel] = _cut(_linear(level1, level2, part))
    return moved


@compiled
def _rotate(image, cosine, sine, bicubic, fill):
    height, width, _ = image.shape
    turned = np.empty((height, width, 3), np.uint8)
    columns, rows = np.empty(4, np.int64), np.empty(4, np.int64)
    lines = np.empty(4)
    for row in range(height):
        down = row + 0.5 - height / 2
        for column in range(width):
            right = column + 0.5 - width / 2
            x = cosine * right - sine * down + width / 2
            y = cosine * down + sine * right + height / 2
            if not (0 <= x < width and 0 <= y < height):
                turned[row, column] = fill
                continue
            left, top = math.floor(x - 0.5), math.floor(y - 0.5)
            part_x, part_y = x - 0.5 - left, y - 0.5 - top
            for tap in range(4):
                columns[tap] = min(max(int(left) + tap - 1, 0), width - 1)
                rows[tap] = min(max(int(top) + tap - 1, 0), height - 1)
            for channel in range(3):
                if bicubic:
                    for tap in range(4):
                        pixels = image[rows[tap]]
                        lines[tap] = _cubic(
                            float(pixels[columns[0], channel]),
                            float(pixels[columns[1], channel]),
                            float(pixels[columns[2], channel]),
                            float(pixels[columns[3], channel]),
                            part_x,
                        )
                    turned[row, column, channel] = _cut(_cubic(lines[0], lines[1], lines[2], lines[3], part_y))
                else:
                    for tap in (1, 2):
                        pixels = image[rows[tap]]
                        lines[tap] = _linear(
                            float(pixels[columns[1], channel]), float(pixels[columns[2], channel]), part_x
                        )
                    turned[row, column, channel] = _cut(_linear(lines[1], lines[2], part_y))
    return turned
