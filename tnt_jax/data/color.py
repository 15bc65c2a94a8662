"""Colour operations on one image, as Pillow computes them: uint8 [H, W, 3] -> uint8 [H, W, 3], level for level.

Pillow works on uint8 with tables, on 32-bit floats cut to whole levels (Image.blend) and on 16-bit fixed point for grey
levels; the arithmetic here has the same steps in the same precision. Sources: Pillow's ImageOps, ImageEnhance, Blend.c,
Convert.c and Filter.c.
"""

import numpy as np

from tnt_jax.data.compiled import compiled

_float32, _int32 = np.float32, np.int32  # around each result, as Numba calculates with 64 bits


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Each channel stretched so that its darkest level is 0 and its lightest 255; a constant channel stays."""
    return _look_up(image, _stretching(_histogram(image)))


def equalize(image: np.ndarray) -> np.ndarray:
    """Each channel's levels mapped so that they are about equally frequent; a channel of one level stays."""
    return _look_up(image, _equalizing(_histogram(image)))


def invert(image: np.ndarray) -> np.ndarray:
    """255 minus each level."""
    return ~image


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the `bits` (0..8) highest bits of each level; 0 bits make the image black."""
    return image & np.uint8(256 - (1 << (8 - bits)))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts the levels from `threshold` (0..256) up."""
    return _solarize(image, threshold, 0, -1)


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
    """Adds `addition` (0..128) to the levels below 128."""
    return _solarize(image, 128, addition, 0)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends black (factor 0) with the image (1) and beyond."""
    return _blend(image, np.float32(0), np.float32(factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends the mean grey level (factor 0) with the image (1) and beyond."""
    return _blend(image, np.float32(_mean_grey(image)), np.float32(factor))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends the grey image (factor 0) with the image (1) and beyond: saturation."""
    return _saturate(image, np.float32(factor))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends the smoothed image (factor 0) with the image (1) and beyond.

    Smoothed: 3 x 3 neighbours, the centre weighing 5 of 13, rounded; the outermost pixels stay as they are.
    """
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    return _sharpen(image.reshape(height, width * 3), np.float32(factor)).reshape(image.shape)


@compiled
def _look_up(image, table):
    height, width, _ = image.shape
    found = np.empty((height, width, 3), np.uint8)
    for row in range(height):
        for column in range(width):
            for channel in range(3):
                found[row, column, channel] = table[channel, image[row, column, channel]]
    return found


@compiled
def _solarize(image, threshold, addition, flips):
    """Adds to the levels below the threshold, and exchanges those bits of the others that are 1 in `flips`."""
    changed = np.empty(image.shape, np.uint8)
    levels, target = np.ascontiguousarray(image).reshape(-1), changed.reshape(-1)
    for place in range(levels.size):
        level = levels[place]
        target[place] = np.uint8(level + addition) if level < threshold else np.uint8(level ^ flips)
    return changed


@compiled
def _blend(image, degenerate, factor):
    """Blend.c for each level against one: degenerate + factor * (level - degenerate), clipped and cut."""
    blended = np.empty(image.shape, np.uint8)
    levels, target = np.ascontiguousarray(image).reshape(-1), blended.reshape(-1)
    for place in range(levels.size):
        target[place] = _cut(degenerate + factor * (_float32(levels[place]) - degenerate))
    return blended


@compiled
def _histogram(image):
    """-> int64 [3, 256]: how often each channel has each level."""
    counts = np.zeros((3, 256), np.int64)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            for channel in range(3):
                counts[channel, image[row, column, channel]] += 1
    return counts


@compiled
def _stretching(counts):
    """ImageOps.autocontrast's table [3, 256] for a histogram."""
    table = np.empty((3, 256), np.uint8)
    for channel in range(3):
        present = np.flatnonzero(counts[channel])
        low, high = present[0], present[-1]
        scale = 255.0 / (high - low) if high > low else 1.0
        offset = -low * scale if high > low else 0.0
        for level in range(256):
            table[channel, level] = min(max(int(level * scale + offset), 0), 255)
    return table


@compiled
def _equalizing(counts):
    """ImageOps.equalize's table [3, 256] for a histogram."""
    table = np.empty((3, 256), np.uint8)
    for channel in range(3):
        lightest = np.flatnonzero(counts[channel])[-1]
        step = (counts[channel].sum() - counts[channel, lightest]) // 255
        below = step // 2
        for level in range(256):
            table[channel, level] = min(below // step, 255) if step > 0 else level
            below += counts[channel, level]
    return table


@compiled
def _cut(level):
    """float32, clipped and cut to a level."""
    return np.uint8(_int32(min(max(level, _float32(0)), _float32(255))))


@compiled
def _fill_greys(line, greys):
    """line uint8 [3 w] -> Convert.c's grey levels [w], in float32, whose numbers below 2**24 are exact."""
    for column in range(greys.size):
        red, green, blue = _float32(line[3 * column]), _float32(line[3 * column + 1]), _float32(line[3 * column + 2])
        level = red * _float32(19595) + green * _float32(38470) + blue * _float32(7471) + _float32(32768)
        greys[column] = _int32(level * _float32(2**-16))


@compiled
def _mean_grey(image):
    """ImageEnhance.Contrast: the mean grey level, rounded."""
    total, greys, image = 0, np.empty(image.shape[1], np.int32), np.ascontiguousarray(image)
    for row in range(image.shape[0]):
        _fill_greys(image[row].reshape(-1), greys)
        total += greys.sum()
    return int(total / (image.shape[0] * image.shape[1]) + 0.5)


@compiled
def _saturate(image, factor):
    blended, greys = np.empty(image.shape, np.uint8), np.empty(image.shape[1], np.int32)
    image = np.ascontiguousarray(image)
    for row in range(image.shape[0]):
        line, target = image[row].reshape(-1), blended[row].reshape(-1)
        _fill_greys(line, greys)
        for column in range(greys.size):
            grey = _float32(greys[column])
            target[3 * column] = _cut(grey + factor * (_float32(line[3 * column]) - grey))
            target[3 * column + 1] = _cut(grey + factor * (_float32(line[3 * column + 1]) - grey))
            target[3 * column + 2] = _cut(grey + factor * (_float32(line[3 * column + 2]) - grey))
    return blended


@compiled
def _sharpen(image, factor):
    """image [H, W * 3]."""
    blended = image.copy()  # an outermost pixel is its own smoothed self
    height, width = image.shape
    sums = np.empty(width, np.float32)
    for row in range(1, height - 1):
        _add_lines(image[row - 1], image[row], image[row + 1], sums)
        _sharpen_line(sums[:-6], sums[3:-3], sums[6:], image[row, 3:-3], factor, blended[row, 3:-3])
    return blended


@compiled
def _add_lines(above, here, below, sums):
    for place in range(sums.size):
        sums[place] = _float32(above[place]) + _float32(here[place]) + _float32(below[place])


@compiled
def _sharpen_line(left, middle, right, here, factor, blended):
    for place in range(blended.size):
        level = _float32(here[place])
        box = left[place] + middle[place] + right[place] + _float32(4) * level
        smooth = np.floor(box * _float32(1.0 / 13.0) + _float32(0.5))
        blended[place] = _cut(smooth + factor * (level - smooth))
