"""Decoding: Pillow's pixels in all formats, odd and hostile files, other channels and bit depths."""

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import GifImagePlugin, Image

from tests.data import odd_images
from tnt_jax.data import decoding

PHOTOGRAPH = sorted((Path(__file__).parent / "fixtures").glob("*.jpg"))[1]


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("L", "PNG", {}),
        ("RGB", "BMP", {}),
        ("P", "GIF", {"save_all": True, "append_images": [Image.new("P", (96, 96))]}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("L", "JPEG", {}),
        ("RGB", "JPEG", {"subsampling": 2, "progressive": True}),
        ("CMYK", "JPEG", {}),
    ],
)
def test_formats_are_decoded_as_pillow_does_the_first_frame_of_several(mode, kind, options):
    file = io.BytesIO()
    Image.open(PHOTOGRAPH).convert("RGB").convert(mode).save(file, kind, **options)
    np.testing.assert_array_equal(decoding.decode(file.getvalue()), Image.open(file).convert("RGB"))


def test_pixels_are_taken_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    np.testing.assert_array_equal(decoding.decode(pixels), pixels)
    np.testing.assert_array_equal(decoding.decode(pixels[..., :1]), np.repeat(pixels[..., :1], 3, axis=-1))


def with_orientation(number, kind="JPEG"):
    """Encodes a grey 24 x 16 image with a red stripe on the left, with an EXIF tag; for tag 6 it is saved rotated."""
    image, exif, file = Image.new("RGB", (24, 16), (90, 90, 90)), Image.Exif(), io.BytesIO()
    image.paste((255, 0, 0), (0, 0, 6, 16))
    exif[0x0112] = number
    if number == 6:  # a phone held upright: its sensor's image is rotated by 90 degrees
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_turns_an_image_where_it_is_asked_for(kind):
    turned = decoding.decode(with_orientation(6, kind), upright=True)
    assert turned.size == (24, 16) and turned.getpixel((2, 8))[0] > 200 and turned.getpixel((20, 8))[0] < 120
    stored = decoding.decode(with_orientation(6, kind))
    assert stored.size == (16, 24) and stored.getpixel((8, 2))[0] < 120
    for number in (1, 0, 99):
        assert decoding.decode(with_orientation(number, kind), upright=True).size == (24, 16)


def test_a_damaged_exif_block_does_not_make_its_image_faulty():
    data = bytearray(with_orientation(6))
    start = data.index(b"Exif\0\0")
    data[start + 6 : start + 20] = b"\xff" * 14
    assert decoding.decode(bytes(data), upright=True).size == (16, 24)


def test_an_odd_tag_beside_the_orientation_does_not_make_its_image_faulty():
    orientation, resolution = struct.pack("<HHII", 0x0112, 3, 1, 6), struct.pack("<HHI4s", 0x011A, 2, 4, b"odd")
    exif, file = b"II*\0\x08\0\0\0\x02\0" + orientation + resolution + bytes(4), io.BytesIO()
    Image.new("RGB", (16, 24)).save(file, "PNG", exif=exif)
    assert decoding.decode(file.getvalue(), upright=True).size == (24, 16)


@pytest.mark.parametrize("progressive", [False, True])
def test_what_follows_a_jpeg_does_not_make_it_faulty(progressive):
    """A phone's motion photo is followed by a video, which may contain a start-of-scan marker by chance."""
    image = odd_images.encoded("RGB", "JPEG", (64, 64), progressive=progressive)
    assert decoding.decode(image + b"\xff\xda" * 1000) == decoding.decode(image)


def test_sixteen_bit_grey_is_grey():
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 30000, np.uint16)).save(file, "PNG")
    assert decoding.decode(file.getvalue()).getpixel((0, 0)) == (117, 117, 117)
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(file := io.BytesIO(), "TIFF")
    with pytest.raises(decoding.Undecodable, match="32-bit numbers"):
        decoding.decode(file.getvalue())


@pytest.mark.parametrize("file", odd_images.FAULTY)
def test_what_cannot_be_decoded_says_why(file):
    make, reason = odd_images.FAULTY[file]
    with pytest.raises(decoding.Undecodable) as error:
        decoding.decode(make())
    assert reason in str(error.value) and str(error.value) and "0x" not in str(error.value)


def big_header(side):
    """Returns a JPEG of a few hundred bytes that claims `side` pixels per side."""
    data = bytearray(odd_images.encoded("RGB", "JPEG"))
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def many_scans(count, size=(64, 64)):
    """Returns a progressive JPEG with `count` more copies of its last scan."""
    data = odd_images.encoded("RGB", "JPEG", size, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: big_header(9000), "bytes that claims 9000 x 9000 pixels: most are missing"),
        (lambda: big_header(13370), "13370 x 13370 pixels, over the limit of 89,478,485"),
        (lambda: many_scans(2000), "a JPEG of 101 scans of 64 x 64 pixels: too many"),
        (lambda: many_scans(70, (4096, 4096)), "scans of 4096 x 4096 pixels: too many"),
    ],
)
def test_hostile_jpegs_are_refused_at_once(data, reason):
    encoded, started = data(), time.monotonic()
    with pytest.raises(decoding.Undecodable, match=reason):
        decoding.decode(encoded)
    assert time.monotonic() - started < 1


def test_of_an_animation_only_the_first_frame_is_decoded(monkeypatch):
    frames, file, seen = [Image.new("P", (30, 20), colour) for colour in range(4)], io.BytesIO(), []
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    seek = GifImagePlugin.GifImageFile._seek
    monkeypatch.setattr(
        GifImagePlugin.GifImageFile, "_seek", lambda self, frame, *more: seen.append(frame) or seek(self, frame, *more)
    )
    assert decoding.decode(file.getvalue()).size == (30, 20)
    assert set(seen) == {0}


def test_a_single_colour_is_no_hostile_jpeg():
    """A single colour gives the fewest bytes per pixel that a current encoder writes in a valid file."""
    for options in ({}, {"progressive": True}, {"optimize": True, "quality": 1}):
        assert decoding.decode(odd_images.encoded("RGB", "JPEG", (3000, 2000), **options)).size == (3000, 2000)


def test_a_damaged_animation_of_millions_of_columns_is_refused_at_once():
    file = io.BytesIO()
    frames = [Image.fromarray(np.full((2, 8, 3), value, np.uint8)) for value in (0, 200)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    sound = file.getvalue()
    assert decoding.decode(sound).size == (8, 2) and sound[24:27] == b"\x07\0\0"  # the canvas width minus one
    with pytest.raises(decoding.Undecodable, match="a WebP of 12517385 x 2 pixels, over the limit of 16,383 per side"):
        decoding.decode(sound[:24] + (12_517_384).to_bytes(3, "little") + sound[27:])


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def decoded(data, count, bits=8):
    """Returns the array, and the set of changes that decoding made."""
    changed = set()
    pixels = decoding.decode(data, channels=decoding.Channels(count, bits), changed=changed)
    return decoding.as_array(pixels), changed


RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (5, 4, 4)).astype(np.uint8)
SIXTEEN = RANDOM.integers(0, 65536, (5, 4, 1)).astype(np.uint16)
RGBA, CMYK = Image.fromarray(COLOURS), Image.fromarray(COLOURS, "CMYK")
GREY, RGB = Image.fromarray(COLOURS[..., 0]), Image.fromarray(COLOURS[..., :3])


@pytest.mark.parametrize(
    ("image", "kind", "count", "expected", "changed"),
    [
        (GREY, "PNG", 1, COLOURS[..., :1], set()),
        (GREY, "PNG", 3, COLOURS[..., [0, 0, 0]], {decoding.GREY}),
        (RGB, "PNG", 1, np.asarray(RGB.convert("L"))[..., None], {decoding.COLOUR}),
        (RGBA, "PNG", 1, np.asarray(RGB.convert("L"))[..., None], {decoding.COLOUR, decoding.ALPHA}),
        (RGBA, "PNG", 3, COLOURS[..., :3], {decoding.ALPHA}),
        (RGBA, "PNG", 4, COLOURS, set()),
        (RGBA, "TIFF", 4, COLOURS, set()),
        (RGB, "PNG", 4, np.asarray(RGB.convert("RGBA")), {decoding.OPAQUE}),
        (CMYK, "TIFF", 4, np.asarray(CMYK.convert("RGB").convert("RGBA")), {decoding.OPAQUE}),
        (RGBA.convert("LA"), "PNG", 4, np.asarray(RGBA.convert("LA").convert("RGBA")), {decoding.GREY}),
    ],
)
def test_channels_are_pillows_and_what_is_lost_is_said(image, kind, count, expected, changed):
    found, said = decoded(saved(image, kind), count)
    assert found.dtype == np.uint8 and said == changed
    np.testing.assert_array_equal(found, expected)


def test_a_fourth_band_that_is_no_alpha_is_kept_too():
    """As in a TIFF with near infrared as an "unspecified" extra sample, of which Pillow reads three channels."""
    data = saved(Image.frombytes("RGBX", (4, 5), COLOURS.tobytes()), "TIFF")
    assert Image.open(io.BytesIO(data)).tag_v2[338] == (0,)
    for count, said in ((4, set()), (3, {decoding.ALPHA})):
        found, changed = decoded(data, count)
        np.testing.assert_array_equal(found, COLOURS[..., :count])
        assert changed == said


def test_sixteen_bits_keep_their_low_bits_where_they_are_asked_for():
    for kind in ("PNG", "TIFF"):
        data = saved(Image.fromarray(SIXTEEN[..., 0]), kind)
        found, changed = decoded(data, 1, 16)
        assert found.dtype == np.uint16 and not changed
        np.testing.assert_array_equal(found, SIXTEEN)
        np.testing.assert_array_equal(decoded(data, 3, 16)[0], np.repeat(SIXTEEN, 3, -1))
        upper, changed = decoded(data, 1)
        assert upper.dtype == np.uint8 and changed == {decoding.BITS}
        np.testing.assert_array_equal(upper, SIXTEEN >> 8)
    assert (decoded(data, 4, 16)[0][..., 3] == 65535).all()
    file = io.BytesIO()
    Image.fromarray(SIXTEEN[..., 0]).save(file, "PNG", transparency=int(SIXTEEN[0, 0, 0]))
    assert decoded(file.getvalue(), 1, 16)[1] == {decoding.TRANSPARENT}


def test_eight_bits_become_sixteen():
    for count in (1, 3, 4):
        found, _ = decoded(saved(RGBA), count, 16)
        np.testing.assert_array_equal(found, decoded(saved(RGBA), count)[0].astype(int) * 257)
    assert found.dtype == np.uint16


def test_colours_of_sixteen_bits_are_refused_where_eight_would_be_lost_in_silence():
    """Builds a PNG by hand, because Pillow writes no 16-bit colours."""
    rows = b"".join(b"\0" + row.tobytes() for row in np.repeat(SIXTEEN, 3, -1).astype(">u2"))

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 5, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    found, changed = decoded(data, 3)
    np.testing.assert_array_equal(found, np.repeat(SIXTEEN, 3, -1) >> 8)
    assert changed == {decoding.BITS}
    with pytest.raises(decoding.Undecodable, match=r"16-bit colours .*\.npy file .*pixel_bits=8"):
        decoded(data, 3, 16)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_arrays_of_files_come_as_they_are(count, dtype):
    array = RANDOM.integers(0, 256, (5, 4, count)).astype(dtype)
    bits = 8 * array.itemsize
    for each in (array, np.asfortranarray(array)):
        found, changed = decoded(npy(each), count, bits)
        np.testing.assert_array_equal(found, array)
        assert found.dtype == (np.uint8 if bits == 8 else np.uint16) and not changed
    found, changed = decoded(npy(array), count, 24 - bits)
    np.testing.assert_array_equal(found, array.astype(int) * 257 if bits == 8 else array >> 8)
    assert changed == (set() if bits == 8 else {decoding.BITS})


@pytest.mark.parametrize(
    ("data", "count", "reason"),
    [
        (npy(COLOURS), 5, r"it holds uint8 \[5, 4, 4\], where model.in_channels=5 needs uint8 or uint16 \[H, W, 5\]"),
        (npy(COLOURS[..., 0]), 1, r"uint8 \[5, 4\]"),
        (npy(COLOURS.astype(np.float32)), 4, "it holds float32"),
        (npy(COLOURS[:0]), 4, r"\[0, 4, 4\]"),
        (npy(np.array([{"a": 1}], object)), 1, "allow_pickle"),
        (npy(COLOURS)[:-1], 4, "EOF"),
        (npy(COLOURS)[:20], 4, ""),
        (npy(COLOURS).replace(b"(5, 4, 4)", b"(5e9,4,4)"), 4, ""),
        (npy(COLOURS).replace(b"(5, 4, 4), ", b"(9999999999, 99, 99),"), 4, ""),
        (saved(RGBA), 5, r"it is an image, but model.in_channels=5 needs .npy files \[H, W, 5\] of uint8 or uint16"),
    ],
)
def test_what_does_not_have_the_channels_says_so(data, count, reason):
    with pytest.raises(decoding.Undecodable, match=reason or None):
        decoded(data, count)


def tiff(array):
    """Encodes uint8 [h, w, c] as a TIFF by hand, because Pillow writes at most four channels."""
    height, width, count = array.shape
    end = 8 + 2 + 11 * 12 + 4  # of the header and tags
    extra = struct.pack("<8H", *[8] * count, *[0] * (8 - count))
    short, long, data = 3, 4, end + len(extra)
    tags = [(256, long, 1, width), (257, long, 1, height), (258, short, count, end), (259, short, 1, 1)]
    tags += [(262, short, 1, 2), (273, long, 1, data), (277, short, 1, count), (278, long, 1, height)]
    tags += [(279, long, 1, array.nbytes), (284, short, 1, 1), (338, short, count - 3, 0)]
    body = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return body + bytes(4) + extra + array.tobytes()


def test_of_five_channels_in_a_tiff_the_fourth_is_not_lost_in_silence():
    array = RANDOM.integers(0, 256, (5, 4, 5)).astype(np.uint8)
    np.testing.assert_array_equal(decoded(tiff(array[..., :4]), 4)[0], array[..., :4])
    found, changed = decoded(tiff(array), 3)
    np.testing.assert_array_equal(found, array[..., :3])
    assert changed == {decoding.ALPHA}
    with pytest.raises(decoding.Undecodable, match=r"5 channels, of which Pillow reads 3: save it as an \.npy file"):
        decoded(tiff(array), 4)
