"""From an encoded image to the network's size, by Pillow: decode, crop, resize, flip, RandAugment or colour jitter.

What is drawn (`draw`) is a function of the seeds alone. The recipe is timm's, pixel for pixel on the same draws: random
resized crop, flip, then RandAugment, or colour jitter where there is none. Random erasing and mixing happen later, on
the device.
"""

import io
import math
import re
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageEnhance

from tnt_jax.data import draws, randaugment
from tnt_jax.data.settings import DataSettings, EvalImages

DECODER = f"Pillow {PIL.__version__}"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow's names; it would try many more
MAX_SCANS = 100  # of a progressive JPEG; usual are ten. Each costs a pass over all pixels, and Pillow has no limit
_SCANNED_PIXELS = 1 << 30  # scans times pixels; a photograph of 89 million pixels has twelve scans
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # of a segment, a scan or the end; codes have \xff\x00 alone
_PIXELS_A_BYTE = 512  # at most, of a JPEG: of each 8 x 8 pixels one Huffman code at least is there, of one bit

_WEBP_SIDE = 16_383  # pixels, the format's limit

_CROP_TRIES = 10
_ORIENTATION = 0x0112  # EXIF's number for it
_TURNS = dict(enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM"), 2))
_TURNS |= dict(enumerate(("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"), 5))
_JITTER = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Undecodable(ValueError):
    """An example's image cannot be decoded; the message is the reason."""


class Draws(NamedTuple):
    """The choices for images with leading axes [...], all float64."""

    tries: np.ndarray  # [..., 10, 2]: crops as (rows, columns), multiples of the square root of the image's pixels
    corner: np.ndarray  # [..., 2]: where the crop lies, rows and columns, uniform in 0..1
    choices: np.ndarray  # [..., n]: bicubic, flip, then RandAugment's Draws, or colour jitter's factors and order


def draw(seeds: np.ndarray, settings: DataSettings) -> Draws:
    """seeds integers [..., 2] -> everything that is drawn for the images, all of them at once.

    A crop's area is uniform in data.crop_area, its aspect (width / height) log-uniform in data.crop_aspect.
    """
    area, aspect = np.moveaxis(draws.uniform(seeds, draws.CROP, 2, _CROP_TRIES), -2, 0)
    uniform = draws.uniform(seeds, draws.CROP_CHOICES, 4)
    low, high = settings.crop_area
    area = low + (high - low) * area
    low, high = map(math.log, settings.crop_aspect)
    aspect = np.exp(low + (high - low) * aspect)
    parts = [uniform[..., 2:3] < draws.BICUBIC_BELOW[settings.train_interpolation]]
    parts.append(uniform[..., 3:] < settings.flip_probability)
    if settings.randaugment:
        parts += randaugment.draw(seeds, randaugment.parse(settings.randaugment), settings.train_interpolation)
    elif settings.color_jitter:
        jitter = draws.uniform(seeds, draws.JITTER, 6)
        low, high = 1.0 - settings.color_jitter, 1.0 + settings.color_jitter
        parts += [low + (high - low) * jitter[..., :3], np.argsort(jitter[..., 3:], axis=-1)]
    choices = np.concatenate([part.astype(np.float64) for part in parts], axis=-1)
    return Draws(np.sqrt(np.stack([area / aspect, area * aspect], axis=-1)), uniform[..., :2], choices)


def decode(image: bytes | np.ndarray, upright: bool = False) -> Image.Image:
    """A file's bytes in one of FORMATS, or uint8 [h, w, 1 or 3] -> RGB image; the first frame of several.

    upright: turned as its EXIF orientation says (Pillow turns a TIFF in any case). Transparency is dropped; of 16-bit
    grey the upper eight bits are taken. Raises Undecodable, for more than Pillow's Image.MAX_IMAGE_PIXELS too.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    try:
        opened = Image.open(io.BytesIO(image), formats=FORMATS)
        _check_size(image, opened)
        opened.load()
        if upright and (turn := _TURNS.get(_orientation(opened))):
            opened = opened.transpose(Image.Transpose[turn])
        if opened.mode.startswith("I;16"):  # Pillow's own conversion makes everything above 255 white
            opened = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
        if opened.mode in ("I", "F"):
            raise Undecodable(f"its pixels are 32-bit numbers (Pillow's mode {opened.mode}) of an unknown range")
        return opened if opened.mode == "RGB" else opened.convert("RGB")
    except Undecodable:
        raise
    except Exception as error:  # a damaged file can meet any of Pillow's, zlib's and struct's errors
        reason = str(error).partition(" <_io.BytesIO")[0] or repr(error)  # of a file in memory the address says nothing
        raise Undecodable(reason) from error


def train_image(image: Image.Image, chosen: Draws, settings: DataSettings, image_size: tuple[int, int]) -> np.ndarray:
    """RGB image and the choices for one copy of it (of `draw`, no leading axes) -> uint8 [H, W, 3]."""
    left, top, width, height = crop_box(image.size, chosen, settings)
    bicubic, flip = chosen.choices[:2] > 0
    image = image.crop((left, top, left + width, top + height))
    image = image.resize(image_size[::-1], _RESAMPLE["bicubic" if bicubic else "bilinear"])
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if settings.randaugment:
        policy = randaugment.parse(settings.randaugment)
        fill = tuple(max(0, min(255, round(255 * value))) for value in settings.mean)
        image = randaugment.apply(image, randaugment.Draws(*chosen.choices[2:].reshape(5, -1)), policy, fill)
    elif settings.color_jitter:  # torchvision's ColorJitter without hue
        factors, order = chosen.choices[2:5].tolist(), chosen.choices[5:].astype(int).tolist()
        for number in order:
            image = _JITTER[number](image).enhance(factors[number])
    return np.asarray(image)


def crop_box(size: tuple[int, int], chosen: Draws, settings: DataSettings) -> tuple[int, int, int, int]:
    """Image size (width, height) -> left, top, width, height of torchvision's RandomResizedCrop.

    The first of the ten tries that fits, anywhere in the image. If none fits: the largest centred part whose aspect is
    allowed, of at least a pixel.
    """
    columns, rows = size
    side = math.sqrt(columns * rows)
    for height, width in np.rint(chosen.tries * side).astype(int).tolist():
        if 0 < width <= columns and 0 < height <= rows:
            down, right = chosen.corner.tolist()
            return int(right * (columns - width + 1)), int(down * (rows - height + 1)), width, height
    low, high = settings.crop_aspect
    width, height = max(1, min(columns, round(rows * high))), max(1, min(rows, round(columns / low)))
    return (columns - width) // 2, (rows - height) // 2, width, height


def eval_image(image: Image.Image, settings: DataSettings | EvalImages, image_size: tuple[int, int]) -> np.ndarray:
    """RGB image -> uint8 [H, W, 3]: resized, then the centre.

    The image is resized so that image_size is data.eval_crop_fraction of it, its aspect kept, as timm does: for a
    square the shorter side becomes floor(side / fraction) and the longer is cut to whole pixels (torchvision's Resize);
    for another shape both sides cover the target and are rounded (timm's ResizeKeepRatio).
    """
    target = [math.floor(side / settings.eval_crop_fraction) for side in image_size[::-1]]
    if target[0] == target[1]:
        size = [target[0] * side // min(image.size) for side in image.size]
    else:
        ratio = min(side / wanted for side, wanted in zip(image.size, target, strict=True))
        size = [round(side / ratio) for side in image.size]
    image = image.resize(size, _RESAMPLE[settings.eval_interpolation])
    left, top = (round((side - wanted) / 2) for side, wanted in zip(size, image_size[::-1], strict=True))
    return np.asarray(image.crop((left, top, left + image_size[1], top + image_size[0])))


def _check_size(encoded: bytes, opened: Image.Image) -> None:
    """Raises Undecodable for an image that takes many seconds or a gigabyte and can be no photograph."""
    (width, height), limit = opened.size, Image.MAX_IMAGE_PIXELS
    if limit and width * height > limit:  # up to twice as many Pillow only warns
        raise Undecodable(f"{width} x {height} pixels, of at most {limit:,} (Pillow's Image.MAX_IMAGE_PIXELS)")
    if opened.format == "WEBP" and max(width, height) > _WEBP_SIDE:  # a damaged animation's: 20 s for two rows
        raise Undecodable(f"a WebP of {width} x {height} pixels, of at most {_WEBP_SIDE:,} a side")
    if opened.format not in ("JPEG", "MPO"):
        return
    scans = _scans(encoded)
    if scans > MAX_SCANS or scans * width * height > _SCANNED_PIXELS:
        raise Undecodable(f"a JPEG of {scans} scans of {width} x {height} pixels: too many to decode")
    if width * height > _PIXELS_A_BYTE * len(encoded):
        raise Undecodable(f"a JPEG of {len(encoded)} bytes that says {width} x {height} pixels: most are missing")


def _scans(encoded: bytes) -> int:
    """How many scans a JPEG has, up to its end: a film or another image may follow. Stops above MAX_SCANS."""
    scans, at = 0, 2
    while scans <= MAX_SCANS and (found := _MARKER.search(encoded, at)) and found[0] != b"\xff\xd9":
        scans += found[0] == b"\xff\xda"
        at = found.end() + int.from_bytes(encoded[found.end() : found.end() + 2], "big")  # behind the segment
    return scans


def _orientation(opened: Image.Image) -> object:
    try:
        return opened.getexif().get(_ORIENTATION)
    except Exception:  # a damaged EXIF block says nothing of its image, which is sound
        return None
