"""Parts of baseline JPEG files, as fast as the input pipeline needs them, level for level as libjpeg decodes the whole.

Decoding is most of the work of an input pipeline, and most of it is reading Huffman codes, which libjpeg-turbo and the
other decoders that Python can install do one at a time (benchmarks/input_pipeline.md has their times). Here the codes
are read by jpeg_codes.py and made pixels by jpeg_pixels.py. What is less common than a photograph's JPEG, or is damaged, is left
to TensorFlow's decoder: both functions then give None.
"""

import threading
from typing import NamedTuple

import numpy as np

from tnt_jax.data import jpeg_codes, jpeg_pixels
from tnt_jax.data.faulty import MAX_PIXELS

_space = threading.local()


class Jpeg(NamedTuple):
    """A file whose header has been read."""

    data: np.ndarray  # uint8 [n]
    frame: np.ndarray  # int64 [FIELDS] of jpeg_codes.read_frame

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.frame[jpeg_codes.HEIGHT]), int(self.frame[jpeg_codes.WIDTH])


def opened(encoded: bytes) -> Jpeg | None:
    """A file's bytes -> what `part` needs; None where they are no JPEG, or another one than those it decodes.

    It decodes baseline files, grey or YCbCr, whose colours are in full (4:4:4), halved in columns (4:2:2) or in both
    directions (4:2:0), without restart intervals, as cameras and Pillow write them.
    """
    data = np.frombuffer(encoded, np.uint8)
    file = Jpeg(data, jpeg_codes.read_frame(data))
    return file if 0 < file.size[0] * file.size[1] <= MAX_PIXELS else None


def part(file: Jpeg, top: int, left: int, height: int, width: int) -> np.ndarray | None:
    """-> uint8 [height, width, 3], the same as of the whole decoded image; None where the codes are damaged.

    The part lies within the image. What is stored below it is not read.
    """
    frame = file.frame
    count, across, down = frame[[jpeg_codes.COMPONENTS, jpeg_codes.ACROSS, jpeg_codes.DOWN]].tolist()
    rows, columns = file.size
    more = 2 * (down - 1), 2 * (across - 1)  # halved colours are smoothed with their neighbours
    mcu = 8 * down, 8 * across
    first = [max(corner - edge, 0) // side for corner, edge, side in zip((top, left), more, mcu, strict=True)]
    ends = min(top + height + more[0], rows), min(left + width + more[1], columns)
    last = [-(-end // side) for end, side in zip(ends, mcu, strict=True)]
    tall, wide = last[0] - first[0], last[1] - first[1]
    sizes = [(tall * down, -(-wide * across // jpeg_codes.LANES))] + [(tall, -(-wide // jpeg_codes.LANES))] * (count - 1)
    blocks = np.array(sizes)  # rows of blocks, groups in each
    groups = int(np.prod(blocks, axis=1).sum())
    codes = _workspace("codes", file.data.size + jpeg_codes.SPARE, np.uint8)
    found = _workspace("coefficients", (groups + 1) * jpeg_codes.GROUP, np.int16)
    found = jpeg_codes.coefficients(file.data, frame, np.array(first), np.array(last), blocks[:, 1], codes, found)
    if not len(found):
        return None
    levels = _workspace("levels", groups * 64 * jpeg_codes.LANES, np.uint8)
    tables = frame[jpeg_codes.QUANTIZATION : jpeg_codes.QUANTIZATION + count]
    jpeg_pixels.planes(found, file.data, tables, blocks[:, 0], blocks[:, 1], levels)
    corners = np.array([(first[0] * mcu[0], first[1] * mcu[1])] + [(first[0] * 8, first[1] * 8)] * (count - 1))
    shape = np.array([top, left, -(-rows // down), -(-columns // across)])
    image = _workspace("image", height * width * 3, np.uint8)[: height * width * 3].reshape(height, width, 3)
    sides = blocks * [8, 8 * jpeg_codes.LANES]
    jpeg_pixels.pixels(levels, sides, corners, shape, np.array([down == 2, across == 2]), image)
    return image


def _workspace(name: str, size: int, kind: type) -> np.ndarray:
    """This thread's array of that name, at least `size` long: fresh memory would cost more than what is done in it."""
    array = getattr(_space, name, None)
    if array is None or array.size < size:
        array = np.empty(size + size // 2, kind)
        setattr(_space, name, array)
    return array
