"""Parts of baseline JPEG files, as fast as the input pipeline needs them, level for level as libjpeg decodes the whole.

Decoding is most of the work of an input pipeline, and most of it is reading Huffman codes, which libjpeg-turbo and the
other decoders that Python can install do one at a time (benchmarks/input_pipeline.md has their times). Here the header
is read by jpeg_header.py, the codes by jpeg_tables.py and jpeg_blocks.py, and jpeg_pixels.py makes pixels of them. What
is less common than a photograph's JPEG, or is damaged, is left to TensorFlow's decoder: None or False says so.
"""

import threading
from typing import NamedTuple

import numpy as np

from tnt_jax.data import jpeg_blocks, jpeg_header, jpeg_pixels, jpeg_tables, resample
from tnt_jax.data.compiled import compiled, quick
from tnt_jax.data.faulty import MAX_PIXELS

_KEPT = 2**23  # bytes; a larger array, as few images need, is not kept

_space = threading.local()


class Jpeg(NamedTuple):
    """A file whose header has been read."""

    data: np.ndarray  # uint8 [n]
    frame: np.ndarray  # int64 [FIELDS] of jpeg_header.read_frame

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.frame[jpeg_header.HEIGHT]), int(self.frame[jpeg_header.WIDTH])


def opened(encoded: bytes) -> Jpeg | None:
    """A file's bytes -> what `part` and `resized_boxes` need; None: no JPEG, or another one than those they decode.

    These are baseline files, grey or YCbCr, whose colours are in full (4:4:4), halved in columns (4:2:2) or in both
    directions (4:2:0; more than 4 columns, as libjpeg does not smooth fewer), without restart intervals.
    """
    data = np.frombuffer(encoded, np.uint8)
    file = Jpeg(data, jpeg_header.read_frame(data))
    return file if 0 < file.size[0] * file.size[1] <= MAX_PIXELS else None


def part(file: Jpeg, top: int, left: int, height: int, width: int) -> np.ndarray | None:
    """-> uint8 [height, width, 3], the same as of the whole decoded image; None where the codes are damaged.

    The part lies within the image. What is stored below it is not read, nor the file's end marker. (Where damage leaves
    codes that can be read, levels may be others than libjpeg's, which calculates with 16 bits where this does with 32.)
    """
    image, box = np.empty((height, width, 3), np.uint8), np.array([top, left, height, width])
    return image if _decode(*_arguments(file, box), box, image) else None


def resized_boxes(
    file: Jpeg, boxes: np.ndarray, wanted: np.ndarray, bicubic: np.ndarray, flip: np.ndarray, made: np.ndarray
) -> bool:
    """As resample.resize_boxes, of a file, of which only the part that holds all the boxes is decoded.

    -> whether its codes were sound.
    """
    box = _around(boxes)
    shape = resample.turned_shape(int(box[2]), int(box[3]), made.shape[2])
    turned = _workspace("turned", shape[0] * shape[1], np.uint8).reshape(shape)
    return _decode_and_resize(*_arguments(file, box), box, turned, boxes, wanted, bicubic, flip, made)


@quick
def _around(boxes):
    """-> the smallest box that holds boxes int64 [k, 4]."""
    top, left = boxes[:, 0].min(), boxes[:, 1].min()
    return np.array([top, left, (boxes[:, 0] + boxes[:, 2]).max() - top, (boxes[:, 1] + boxes[:, 3]).max() - left])


def _arguments(file: Jpeg, box: np.ndarray) -> tuple:
    """What the compiled functions begin with: the file, its frame, the plan for a box [4], and arrays to work in."""
    data, frame = file
    plan = jpeg_header.plan(frame, *box.tolist())
    codes = _workspace("codes", data.size + jpeg_tables.SPARE, np.uint8)
    tables = _workspace("tables", 3 * jpeg_tables.TABLES, np.int32)
    found = _workspace("found", (int(plan[jpeg_header.ROW_GROUPS]) + 1) * jpeg_blocks.GROUP, np.int16)
    levels = _workspace("levels", int(plan[jpeg_header.ALL_GROUPS]) * 64 * jpeg_header.LANES, np.uint8)
    return data, frame, plan, (codes, tables, found, levels)


@compiled
def _find_levels(data, frame, plan, space):
    codes, tables, found, levels = space
    size = jpeg_tables.prepare(data, frame, codes, tables)
    return jpeg_blocks.decode(data, frame, plan, codes, size, tables, found, levels)


@compiled
def _decode(data, frame, plan, space, box, image):
    """Fills image uint8 [h, w, 3] with a box -> whether the codes were sound."""
    sound = _find_levels(data, frame, plan, space)
    if sound:
        jpeg_pixels.pixels(frame, plan, box, space[3], image.reshape(box[2], 3 * box[3]))
    return sound


@compiled
def _decode_and_resize(data, frame, plan, space, box, turned, boxes, wanted, bicubic, flip, made):
    """In one call: after each one that lets other threads run, this may go on on a core that has none of its data."""
    if not _find_levels(data, frame, plan, space):
        return False
    jpeg_pixels.turned_pixels(frame, plan, box, space[3], turned)
    within = boxes.copy()
    within[:, 0] -= box[0]
    within[:, 1] -= box[1]
    resample.resize_turned_boxes(turned, within, wanted, bicubic, flip, made)
    return True


def _workspace(name: str, size: int, kind: type) -> np.ndarray:
    """This thread's array of that name, `size` long: fresh memory would cost more than what is done in it."""
    array = getattr(_space, name, None)
    if array is None or array.size < size:
        array = np.empty(size + size // 4, kind)
        if array.nbytes <= _KEPT:
            setattr(_space, name, array)
    return array[:size]
