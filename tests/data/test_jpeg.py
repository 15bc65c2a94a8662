"""Parts of JPEGs against TensorFlow's and Pillow's decoders of the whole: equal, level for level; the rest refused."""

import concurrent.futures
import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageFile

from tests.data import odd_images
from tnt_jax.data import jpeg, jpeg_header, jpeg_tables, resample

JPEGS = sorted((Path(__file__).parent / "fixtures").glob("*.jpg"))
ImageFile.MAXBLOCK = 2**22  # bytes of a file that Pillow optimises; without, it fails for noise
SIDES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 64, 129, 300]


def saved(levels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", **options)
    return file.getvalue()


def picture(random, shape) -> np.ndarray:
    """Noise of a random strength over waves of a random length: few and many codes, short and long ones."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    waves = (
        np.sin(rows / random.uniform(1, 40)) * np.cos(columns / random.uniform(1, 40)) * random.uniform(0, 120) + 128
    )
    waves = waves.reshape(*shape[:2], *[1] * (len(shape) - 2))
    return np.clip(waves + random.normal(0, random.choice([0, 3, 30, 200]), shape), 0, 255).astype(np.uint8)


def random_file(random) -> bytes:
    height, width = random.choice(SIDES, 2).tolist()
    shape = (height, width, 3) if random.random() < 0.8 else (height, width)
    options = {"quality": int(random.choice([1, 10, 50, 75, 90, 95, 100])), "optimize": bool(random.random() < 0.5)}
    if len(shape) == 3:
        options["subsampling"] = int(random.integers(3))  # 4:4:4, 4:2:2, 4:2:0
    return saved(picture(random, shape), **options)


def random_box(random, size) -> tuple[int, int, int, int]:
    height, width = (int(random.integers(1, side + 1)) for side in size)
    top, left = (int(random.integers(side - length + 1)) for side, length in zip(size, (height, width), strict=True))
    return top, left, height, width


def whole(data: bytes) -> np.ndarray:
    return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").numpy()


def test_parts_of_any_file_are_those_of_the_whole():
    random, opened = np.random.default_rng(0), 0
    for _ in range(250):
        data = random_file(random)
        file, image = jpeg.opened(data), whole(data)
        if file is None:  # colours halved to two columns or fewer: libjpeg does not smooth them
            assert image.shape[1] <= 4
            continue
        assert file.size == image.shape[:2]
        np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        for box in [(0, 0, *file.size), *(random_box(random, file.size) for _ in range(3))]:
            top, left, height, width = box
            expected = image[top : top + height, left : left + width]
            np.testing.assert_array_equal(jpeg.part(file, *box), expected, f"{file.frame} {box}")
        opened += 1
    assert opened > 200


@pytest.mark.parametrize("path", JPEGS, ids=lambda path: path.name)
def test_parts_of_photographs_are_those_of_the_whole(path):
    random, data = np.random.default_rng(1), path.read_bytes()
    file, image = jpeg.opened(data), whole(data)
    for _ in range(10):
        top, left, height, width = box = random_box(random, file.size)
        np.testing.assert_array_equal(jpeg.part(file, *box), image[top : top + height, left : left + width])


def test_codes_longer_than_a_look_up_are_read():
    """Levels of all sizes, some of them rare, and tables made for them."""
    levels = np.clip(np.random.default_rng(2).standard_t(1.2, (400, 400, 3)) * 20 + 128, 0, 255).astype(np.uint8)
    data = saved(levels, quality=100, subsampling=0, optimize=True)
    file = jpeg.opened(data)
    lengths = [data[place : place + 16] for place in file.frame[jpeg_header.AC : jpeg_header.AC + 2].tolist()]
    assert all(any(counts[jpeg_tables.AC_BITS :]) for counts in lengths)
    np.testing.assert_array_equal(jpeg.part(file, 0, 0, 400, 400), whole(data))


@pytest.mark.parametrize("down, across", [(1, 1), (1, 2), (2, 2)])
def test_sizes_that_no_block_divides(down, across):
    subsampling = {(1, 1): 0, (1, 2): 1, (2, 2): 2}[down, across]
    random = np.random.default_rng(3)
    for height, width in random.integers(5, 70, (40, 2)).tolist():
        data = saved(picture(random, (height, width, 3)), quality=90, subsampling=subsampling)
        np.testing.assert_array_equal(jpeg.part(jpeg.opened(data), 0, 0, height, width), whole(data))


REFUSED = {
    "empty": lambda: b"",
    "a marker alone": lambda: b"\xff\xd8\xff\xda",
    "progressive": lambda: odd_images.encoded("RGB", "JPEG", progressive=True),
    "cmyk": lambda: odd_images.encoded("CMYK", "JPEG"),
    "red, green and blue": lambda: odd_images.encoded("RGB", "JPEG", keep_rgb=True),
    "restart intervals": lambda: odd_images.encoded("RGB", "JPEG", restart_marker_blocks=1),
    "too large": odd_images.huge_jpeg,
    "png": lambda: odd_images.encoded("RGB", "PNG"),
    "text": lambda: b"<html>404</html>",
    "header cut off": lambda: odd_images.encoded("RGB", "JPEG")[:200],
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_other_files_are_left_to_others(make):
    assert jpeg.opened(make()) is None


def test_what_a_part_does_not_need_may_be_missing():
    """A file that was cut off gives the right pixels or none: above the cut the right ones."""
    data = odd_images.noise(0, (160, 200))
    image, given = whole(data), 0
    for cut in np.random.default_rng(4).integers(700, len(data), 60).tolist():
        file = jpeg.opened(data[:cut])
        if file is None:
            continue
        for rows in (8, 96, 200):
            found = jpeg.part(file, 0, 0, rows, 160)
            if found is not None:
                np.testing.assert_array_equal(found, image[:rows])
                given += rows < 200
            assert found is None or rows < 200
    assert given > 30


def test_damaged_files_give_pixels_or_none():
    """Whatever bytes are changed: an array of the right shape, or None. tests.fuzz.jpegs checks all bounds too."""
    random, outcomes = np.random.default_rng(5), set()
    for _ in range(300):
        data = bytearray(random_file(random))
        for place in random.integers(len(data), size=random.integers(1, 6)):
            data[place] = random.integers(256)
        file = jpeg.opened(bytes(data))
        if file is not None and np.prod(file.size) < 2**20:
            top, left, height, width = random_box(random, file.size)
            found = jpeg.part(file, top, left, height, width)
            outcomes.add(found is None)
            assert found is None or found.shape == (height, width, 3)
        else:
            outcomes.add("refused")
    assert outcomes == {True, False, "refused"}


@pytest.mark.parametrize("run", [9, 15])
@pytest.mark.parametrize("quality", [30, 100])
def test_coefficients_beyond_a_block_are_damage(run, quality):
    """libjpeg keeps them in the last place; here TensorFlow does so."""
    data = bytearray(saved(np.random.default_rng(8).integers(0, 256, (8, 8), np.uint8), quality=quality))
    start = int(jpeg.opened(bytes(data)).frame[jpeg_header.AC]) + 16
    for place in range(start, start + sum(data[start - 16 : start])):
        if data[place] & 15:
            data[place] = data[place] & 15 | run << 4
    file = jpeg.opened(bytes(data))
    assert file is not None and jpeg.part(file, 0, 0, 8, 8) is None


@pytest.mark.parametrize(
    "grey, old, new",
    [
        (True, b"\x01\x11\x00", b"\x01\x01\x00"),  # no samples across
        (True, b"\x01\x11\x00", b"\x01\x15\x00"),  # too many down
        (False, b"\x02\x11\x01", b"\x02\x11\x04"),  # a fifth table of quantisation
        (False, b"\x08\x00\x10\x00\x10\x03", b"\x08\x00\x10\xff\xff\x03"),  # wider than libjpeg allows
        (True, b"\x08\x09\x0a\x0b", b"\x08\x09\x0a\x1b"),  # a first coefficient of 27 bits
    ],
)
def test_headers_that_tensorflow_refuses_are_refused(grey, old, new):
    data = saved(np.full((16, 16) if grey else (16, 16, 3), 99, np.uint8), subsampling=0)
    assert data.count(old) == 1 and jpeg.opened(data) is not None
    data = data.replace(old, new)
    assert jpeg.opened(data) is None
    with pytest.raises(tf.errors.InvalidArgumentError):
        whole(data)


def test_colours_are_red_green_and_blue_where_libjpeg_takes_them_so():
    """By the components' names, unless a whole JFIF or Adobe segment says otherwise."""
    data = saved(np.full((16, 16, 3), 99, np.uint8), subsampling=0)
    for old, new in ((b"\x01\x11\x00", b"R\x11\x00"), (b"\x02\x11\x01", b"G\x11\x01"), (b"\x03\x11\x01", b"B\x11\x01")):
        assert data.count(old) == 1
        data = data.replace(old, new)
    data = data.replace(b"\x03\x01\x00\x02\x11\x03\x11", b"\x03R\x00G\x11B\x11")
    assert jpeg.opened(data) is not None  # JFIF
    data = data.replace(b"JFIF\0", b"JFIX\0")
    assert jpeg.opened(data) is None


def test_boxes_are_resized_as_they_are_one_by_one():
    random, path = np.random.default_rng(6), JPEGS[0]
    file, image = jpeg.opened(path.read_bytes()), whole(path.read_bytes())
    boxes = np.array([random_box(random, file.size) for _ in range(4)])
    wanted, bicubic = np.array([True, False, True, True]), np.array([False, True, True, False])
    flip = np.array([False, False, True, True])
    made = np.full((4, 24, 40, 3), 7, np.uint8)
    assert jpeg.resized_boxes(file, boxes, wanted, bicubic, flip, made)
    for number, (top, left, height, width) in enumerate(boxes.tolist()):
        crop = image[top : top + height, left : left + width]
        expected = resample.resize(crop, (24, 40), bool(bicubic[number]), bool(flip[number]))
        np.testing.assert_array_equal(made[number], expected if wanted[number] else 7)
    damaged = jpeg.opened(path.read_bytes()[:-2000])
    assert not jpeg.resized_boxes(damaged, np.array([[0, 0, *file.size]]), wanted[:1], bicubic[:1], flip[:1], made[:1])


def test_threads_do_not_disturb_each_other():
    random = np.random.default_rng(7)
    files = [saved(picture(random, (*random.integers(30, 200, 2), 3)), quality=90) for _ in range(40)]

    def part(data: bytes) -> np.ndarray:
        file = jpeg.opened(data)
        return jpeg.part(file, 0, 0, *file.size)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for data, found in zip(files * 5, pool.map(part, files * 5), strict=True):
            np.testing.assert_array_equal(found, whole(data))
