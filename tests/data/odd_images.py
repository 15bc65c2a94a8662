"""Odd and faulty image files, named by what is odd about them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

HUGE = 30_000  # pixels per side


def encoded(mode: str, kind: str, size: tuple[int, int] = (20, 16), colour=(200, 100, 40), **options) -> bytes:
    """Encodes a one-colour image of `size` (width, height) in a Pillow mode, as a JPEG, PNG or GIF."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(file, kind, **options)
    return file.getvalue()


def noise(number: int, size: tuple[int, int] = (20, 16)) -> bytes:
    """Encodes noise, different for each number, as a JPEG."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def huge_jpeg() -> bytes:
    """Returns a JPEG of a few hundred bytes whose header claims HUGE x HUGE pixels."""
    data = bytearray(encoded("RGB", "JPEG"))
    frame = data.index(b"\xff\xc0") + 5  # marker, length, precision; then height and width
    data[frame : frame + 4] = struct.pack(">HH", HUGE, HUGE)
    return bytes(data)


def huge_png() -> bytes:
    """Returns a PNG of a few hundred bytes whose header claims HUGE x HUGE pixels."""
    data = bytearray(encoded("RGB", "PNG"))
    data[16:24] = struct.pack(">II", HUGE, HUGE)  # after the signature, the length and the name of the first chunk
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def sixteen_bits() -> bytes:
    """Returns a grey PNG with two bytes per pixel."""
    file = io.BytesIO()
    Image.fromarray(np.full((16, 20), 30_000, np.uint16)).save(file, "PNG")
    return file.getvalue()


# Images that training and evaluation must use like any other.
ODD = {
    "grey.jpg": lambda: encoded("L", "JPEG"),
    "cmyk.jpg": lambda: encoded("CMYK", "JPEG"),
    "progressive.jpg": lambda: encoded("RGB", "JPEG", progressive=True),
    "grey.png": lambda: encoded("L", "PNG"),
    "grey_alpha.png": lambda: encoded("LA", "PNG"),
    "alpha.png": lambda: encoded("RGBA", "PNG"),
    "palette.png": lambda: encoded("P", "PNG"),
    "bits.png": lambda: encoded("1", "PNG"),
    "sixteen.png": sixteen_bits,
    "png_by_another_name.jpg": lambda: encoded("RGB", "PNG"),
    "pixel.jpg": lambda: encoded("RGB", "JPEG", (1, 1)),
    "pixel.png": lambda: encoded("RGB", "PNG", (1, 1)),
    "line.jpg": lambda: encoded("RGB", "JPEG", (1, 300)),
    "row.png": lambda: encoded("RGB", "PNG", (300, 1)),
}
# Files that cannot be decoded, with a part of the reason that is logged.
FAULTY = {
    "empty.jpg": (lambda: b"", ""),
    "text.jpg": (lambda: b"<html>404</html>", "cannot identify image file"),
    "truncated.jpg": (lambda: noise(0, (200, 160))[:2000], "image file is truncated"),
    "header_alone.jpg": (lambda: noise(0)[:200], ""),
    "truncated.png": (lambda: encoded("RGB", "PNG")[:60], ""),
    "huge.jpg": (huge_jpeg, "900000000 pixels) exceeds limit of 178956970 pixels"),
    "huge.png": (huge_png, "900000000 pixels) exceeds limit of 178956970 pixels"),
}
