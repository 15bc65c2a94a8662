"""Decodes images to the channels and bits that the network needs: image files with Pillow, .npy files as arrays.

One or three channels of 8 bits are Pillow images of mode L or RGB. Pillow has no mode, or a wrong one, for the rest:
these become `Bands`, one image per channel, which crops, resizes and flips like a single image.
"""

import contextlib
import dataclasses
import io
import re
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps

DECODER = f"Pillow {PIL.__version__}"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow's names; it would try many more
MAX_SCANS = 100  # of a progressive JPEG; ten are usual. Each is a pass over all pixels, and Pillow has no limit
_SCANNED_PIXELS = 1 << 30  # limit on scans times pixels; allows twelve scans of 89 million pixels
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # of a segment, a scan or the end; coded data has \xff\x00 instead
_PIXELS_A_BYTE = 512  # upper limit of a JPEG: each 8 x 8 block has at least one Huffman code of one bit
_WEBP_SIDE = 16_383  # pixels, the format's limit
_NPY = b"\x93NUMPY"  # first bytes of an .npy file

_SAMPLES = 277  # TIFF tag SamplesPerPixel, the number of channels

# What `decode` may change in images. Each text completes "3 of 64 images ..." in the log.
GREY = "are grey: the channel is repeated three times"
COLOUR = "have colours, which Pillow converts to grey"
ALPHA = "have transparency or an extra channel, which is dropped (model.in_channels=4 keeps it)"
TRANSPARENT = "have 16 bits and a grey value that marks transparent pixels, which is kept as a grey value"
OPAQUE = "have no fourth channel: an opaque one is added"
BITS = "have 16 bits per channel, of which the upper eight are kept (data.pixel_bits=8)"
LOST = {COLOUR, ALPHA, TRANSPARENT, BITS}  # changes that lose information


class Undecodable(ValueError):
    """An example's image cannot be decoded; the message gives the reason."""


@dataclasses.dataclass
class Changes:
    """Changes that `decode` made (GREY, ...): how many images each one affects, and the name of the first."""

    images: int = 0
    found: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)

    def add(self, kinds: set[str], name: str) -> None:
        """Adds an image and the changes made to it."""
        self.update(Changes(1, {kind: (1, name) for kind in kinds}))

    def update(self, others: "Changes") -> None:
        """Adds the counts of `others`."""
        self.images += others.images
        for kind, (more, name) in others.found.items():
            count, first = self.found.get(kind, (0, name))
            self.found[kind] = count + more, first


class Channels(NamedTuple):
    """Requested channels and bits per channel: config.model.in_channels and config.data.pixel_bits."""

    count: int = 3
    bits: int = 8

    @property
    def dtype(self) -> type:
        """NumPy type of the pixel arrays."""
        return np.uint8 if self.bits == 8 else np.uint16


RGB = Channels()


Box = tuple[float, float, float, float]  # left, top, right, bottom


class Bands(NamedTuple):
    """An image with any number of channels, each a Pillow image of mode L (8 bits) or F (holds 16 bits exactly).

    It has the same methods as a Pillow image. Alpha is an ordinary channel, not multiplied into the colours.
    """

    images: tuple[Image.Image, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.images[0].size

    def crop(self, box: Box) -> "Bands":
        """Crops each channel to `box`."""
        return Bands(tuple(image.crop(box) for image in self.images))

    def resize(self, size: tuple[int, int], resample: Image.Resampling, box: Box | None = None) -> "Bands":
        """Resizes each channel, or `box` of it, to (width, height)."""
        return Bands(tuple(image.resize(size, resample, box) for image in self.images))

    def transpose(self, method: Image.Transpose) -> "Bands":
        """Flips or rotates each channel."""
        return Bands(tuple(image.transpose(method) for image in self.images))


Pixels = Image.Image | Bands


def as_array(pixels: Pixels) -> np.ndarray:
    """-> [h, w, C], uint8 or uint16."""
    if isinstance(pixels, Image.Image):
        array = np.asarray(pixels)
        return array if array.ndim == 3 else array[..., None]
    array = np.stack([np.asarray(image) for image in pixels.images], axis=-1)
    return array if array.dtype == np.uint8 else np.clip(np.rint(array), 0, 65535).astype(np.uint16)


def from_array(array: np.ndarray) -> Pixels:
    """array [h, w, C], uint8 or uint16 -> the same pixels as an image."""
    if array.dtype == np.uint8 and array.shape[-1] in (1, 3):
        return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    kind = np.uint8 if array.dtype == np.uint8 else np.float32
    return Bands(tuple(Image.fromarray(channel.astype(kind)) for channel in np.moveaxis(array, -1, 0)))


def decode(
    image: bytes | np.ndarray, upright: bool = False, channels: Channels = RGB, changed: set[str] | None = None
) -> Pixels:
    """Bytes of an image file (FORMATS) or an .npy file, or an array [h, w, c] -> an image with `channels`.

    upright: applies the EXIF orientation (Pillow always does for TIFF). Only the first of several frames is read. For
    one, three and four channels (RGBA, or near infrared in place of alpha) Pillow converts grey, colours and
    transparency; an .npy file must hold the right channels, [h, w, C] of uint8 or uint16. 8 bits become 16 by a factor
    of 257; 16 bits become the upper eight. changed: receives the changes made (GREY, ...). Raises Undecodable, also for
    more pixels than Pillow's Image.MAX_IMAGE_PIXELS.
    """
    changed = set() if changed is None else changed
    try:
        if not isinstance(image, np.ndarray) and is_array(image):  # an .npy file
            array = np.lib.format.read_array(io.BytesIO(image), allow_pickle=False)
            array = _checked(array.astype(array.dtype.newbyteorder("="), copy=False), channels.count)
        elif isinstance(image, np.ndarray) and image.shape[-1] not in {1, 3} - {channels.count}:
            array = _checked(image, channels.count)
        else:
            opened = _open(image, upright, channels, changed)
            if channels.bits == 8 and channels.count in (1, 3):
                return _converted(opened, channels.count, changed)
            array = _channels(opened, channels.count, changed)
        return from_array(_with_bits(array, channels.bits, changed))
    except Undecodable:
        raise
    except Exception as error:  # a damaged file can raise any error of Pillow, zlib or struct
        reason = str(error).partition(" <_io.BytesIO")[0] or repr(error)  # without the in-memory file's address
        raise Undecodable(reason) from error


def is_array(image: bytes | np.ndarray) -> bool:
    """Whether a record's image is an array, or the content of an .npy file, and so has fixed channels."""
    return isinstance(image, np.ndarray) or image.startswith(_NPY)


def _open(image: bytes | np.ndarray, upright: bool, channels: Channels, changed: set[str]) -> Image.Image:
    """-> a Pillow image with 8 bits or, where 16 are requested, with 16-bit grey."""
    if isinstance(image, np.ndarray):
        opened, sixteen = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), False
    else:
        opened = Image.open(io.BytesIO(image), formats=FORMATS)
        _check_size(image, opened)
        if opened.format == "TIFF":
            _keep_fourth(opened, channels.count, changed)
        sixteen = opened.format in ("PNG", "TIFF") and any(";16" in str(tile.args) for tile in opened.tile)
        opened.load()
        if upright:
            with contextlib.suppress(Exception):  # the image may be sound although its EXIF block is damaged
                ImageOps.exif_transpose(opened, in_place=True)
    if opened.mode in ("I", "F"):
        raise Undecodable(f"its pixels are 32-bit numbers (Pillow's mode {opened.mode}) of an unknown range")
    grey = opened.mode.startswith("I;16")
    if grey and opened.has_transparency_data:  # a grey value that marks transparent pixels, for any requested channels
        changed.add(TRANSPARENT)
    if grey and channels.bits == 8:  # Pillow's own conversion makes everything above 255 white
        opened = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
    if (grey or sixteen) and channels.bits == 8:
        changed.add(BITS)
    if sixteen and not grey and channels.bits == 16:
        raise Undecodable(
            "it has 16-bit colours or transparency, of which Pillow keeps eight bits: save it as an .npy file "
            "[H, W, C], or set data.pixel_bits=8"
        )
    return opened


def _keep_fourth(opened: Image.Image, count: int, changed: set[str]) -> None:
    """Keeps the fourth channel of a TIFF not yet loaded, if requested: Pillow reads only RGB unless it is alpha."""
    samples = opened.tag_v2.get(_SAMPLES, 1)
    if samples == 4 and count == 4 and opened.tile and opened.tile[0].args[0] == "RGBX":
        opened._mode = "RGBX"  # Pillow then reads all four channels
    if samples > len(opened.getbands()):
        if count == 4:
            raise Undecodable(
                f"it has {samples} channels, of which Pillow reads {len(opened.getbands())}: save it as an .npy file "
                f"[H, W, {count}]"
            )
        changed.add(ALPHA)


def _converted(opened: Image.Image, count: int, changed: set[str]) -> Image.Image:
    """An 8-bit image of any Pillow mode -> L, RGB or, for four channels, RGBA or RGBX."""
    grey = opened.mode in ("1", "L", "LA", "La")
    alpha = opened.has_transparency_data or opened.mode == "RGBX"
    if count == 1 and not grey:
        changed.add(COLOUR)
    if count > 1 and grey:
        changed.add(GREY)
    if count < 4 and alpha:
        changed.add(ALPHA)
    if count == 4 and not alpha:
        changed.add(OPAQUE)
    modes = {1: ("L",), 3: ("RGB",), 4: ("RGBA", "RGBX")}[count]
    return opened if opened.mode in modes else opened.convert(modes[0])


def _channels(opened: Image.Image, count: int, changed: set[str]) -> np.ndarray:
    """-> [h, w, count], uint8 or, for 16-bit grey, uint16."""
    if count not in (1, 3, 4):
        raise Undecodable(
            f"it is an image, but model.in_channels={count} needs .npy files [H, W, {count}] of uint8 or uint16"
        )
    if not opened.mode.startswith("I;16"):
        return as_array(_converted(opened, count, changed))
    grey = np.asarray(opened).astype(np.uint16)[..., None]
    if count == 1:
        return grey
    changed.add(GREY)
    opaque = [np.full_like(grey, 65535)] * (count == 4)
    if opaque:
        changed.add(OPAQUE)
    return np.concatenate([grey] * 3 + opaque, axis=-1)


def _with_bits(array: np.ndarray, bits: int, changed: set[str]) -> np.ndarray:
    """uint8 or uint16 -> uint8 for 8 `bits`, uint16 for 16."""
    if array.dtype == np.uint16 and bits == 8:
        changed.add(BITS)
        return (array >> 8).astype(np.uint8)
    if array.dtype == np.uint8 and bits == 16:
        return array.astype(np.uint16) * np.uint16(257)
    return array


def _checked(array: np.ndarray, count: int) -> np.ndarray:
    """Returns the array. Raises Undecodable unless it is [h, w, count] of uint8 or uint16, and not empty."""
    if array.ndim != 3 or array.dtype not in (np.uint8, np.uint16) or array.shape[-1] != count or not array.size:
        raise Undecodable(
            f"it holds {array.dtype} {list(array.shape)}, where model.in_channels={count} needs uint8 or uint16 "
            f"[H, W, {count}]"
        )
    return array


def _check_size(encoded: bytes, opened: Image.Image) -> None:
    """Raises Undecodable for an image that would take many seconds or a gigabyte and cannot be a photograph."""
    (width, height), limit = opened.size, Image.MAX_IMAGE_PIXELS
    if limit and width * height > limit:  # Pillow only warns, up to twice as many
        raise Undecodable(f"{width} x {height} pixels, over the limit of {limit:,} (Pillow's Image.MAX_IMAGE_PIXELS)")
    if opened.format == "WEBP" and max(width, height) > _WEBP_SIDE:  # a damaged animation took 20 s for two rows
        raise Undecodable(f"a WebP of {width} x {height} pixels, over the limit of {_WEBP_SIDE:,} per side")
    if opened.format not in ("JPEG", "MPO"):
        return
    scans = _scans(encoded)
    if scans > MAX_SCANS or scans * width * height > _SCANNED_PIXELS:
        raise Undecodable(f"a JPEG of {scans} scans of {width} x {height} pixels: too many to decode")
    if width * height > _PIXELS_A_BYTE * len(encoded):
        raise Undecodable(f"a JPEG of {len(encoded)} bytes that claims {width} x {height} pixels: most are missing")


def _scans(encoded: bytes) -> int:
    """Counts the scans of a JPEG up to its end marker; a film or another image may follow. Stops above MAX_SCANS."""
    scans, at = 0, 2
    while scans <= MAX_SCANS and (found := _MARKER.search(encoded, at)) and found[0] != b"\xff\xd9":
        scans += found[0] == b"\xff\xda"
        at = found.end() + int.from_bytes(encoded[found.end() : found.end() + 2], "big")  # skips the segment
    return scans
