"""Augments decoded images with Pillow: crop, resize, flip, RandAugment, three-augment, colour jitter.

All draws (`draw`) depend only on the seeds. The recipe is timm's, pixel for pixel with the same draws: random resized
crop, flip, then RandAugment, or colour jitter without it. DeiT III's recipe is available too (Touvron et al.,
arXiv 2204.07118): a simple crop, and three-augment before colour jitter. Random erasing and mixing happen later, on
the device.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from tnt_jax.data import draws, randaugment
from tnt_jax.data.decoding import Pixels, as_array, from_array
from tnt_jax.data.settings import DataSettings, EvalImages

_CROP_TRIES = 10
_PADDING = 4  # reflected pixels added on each side before a simple crop
_BLUR = (0.1, 2.0)  # three-augment's range of standard deviations, in pixels
_JITTER = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Draws(NamedTuple):
    """The random choices for images with leading axes [...], all float64."""

    tries: np.ndarray  # [..., 10, 2]: crop sizes (rows, columns), in units of the square root of the image's area
    corner: np.ndarray  # [..., 2]: position of the crop, rows and columns, uniform in 0..1
    # [..., n]: bicubic, flip, then RandAugment's Draws, or three-augment's two and colour jitter's six, as far as used
    choices: np.ndarray


def draw(seeds: np.ndarray, settings: DataSettings) -> Draws:
    """seeds integers [..., 2] -> the Draws for all images at once.

    A crop's area is uniform in data.crop_area, and its aspect (width / height) log-uniform in data.crop_aspect.
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
    if settings.three_augment:
        parts.append(draws.uniform(seeds, draws.THREE, 2))
    if settings.color_jitter and not settings.randaugment:
        jitter = draws.uniform(seeds, draws.JITTER, 6)
        low, high = 1.0 - settings.color_jitter, 1.0 + settings.color_jitter
        parts += [low + (high - low) * jitter[..., :3], np.argsort(jitter[..., 3:], axis=-1)]
    choices = np.concatenate([part.astype(np.float64) for part in parts], axis=-1)
    return Draws(np.sqrt(np.stack([area / aspect, area * aspect], axis=-1)), uniform[..., :2], choices)


def train_image(image: Pixels, chosen: Draws, settings: DataSettings, image_size: tuple[int, int]) -> np.ndarray:
    """Image and the Draws for one copy of it (no leading axes) -> [H, W, C], uint8 or uint16."""
    bicubic, flip = chosen.choices[:2] > 0
    resample, choices = _RESAMPLE["bicubic" if bicubic else "bilinear"], chosen.choices[2:]
    if settings.crop == "simple":
        image = simple_crop(image, chosen.corner, image_size, resample)
    else:
        left, top, width, height = crop_box(image.size, chosen, settings)
        image = image.crop((left, top, left + width, top + height)).resize(image_size[::-1], resample)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if settings.randaugment:
        policy = randaugment.parse(settings.randaugment)
        mean = np.broadcast_to(settings.mean, len(image.getbands())).tolist()
        fill = tuple(max(0, min(255, round(255 * value))) for value in mean)
        image = randaugment.apply(image, randaugment.Draws(*choices.reshape(5, -1)), policy, fill)
        return as_array(image)
    if settings.three_augment:
        image, choices = three_augment(image, *choices[:2].tolist()), choices[2:]
    if settings.color_jitter:  # torchvision's ColorJitter without hue
        factors = choices[:3].tolist()
        for number in choices[3:].astype(int).tolist():
            image = _JITTER[number](image).enhance(factors[number])
    return as_array(image)


def crop_box(size: tuple[int, int], chosen: Draws, settings: DataSettings) -> tuple[int, int, int, int]:
    """Image size (width, height) -> left, top, width, height of torchvision's RandomResizedCrop.

    Takes the first of the ten tries that fits, anywhere in the image. If none fits: the largest centred part with an
    allowed aspect, of at least one pixel.
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


def simple_crop(image: Pixels, corner: np.ndarray, image_size: tuple[int, int], resample: int) -> Pixels:
    """DeiT III's crop: resizes the image to cover image_size, pads it by reflection and crops it to that size.

    corner [2]: position of the crop in the padded image, rows and columns, uniform in 0..1.
    """
    array = as_array(image.resize(_covering(image.size, image_size[::-1]), resample))
    array = np.pad(array, ((_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)), "reflect")
    room = np.subtract(array.shape[:2], image_size)
    top, left = (corner * (room + 1)).astype(int).tolist()
    return from_array(array[top : top + image_size[0], left : left + image_size[1]])


def three_augment(image: Image.Image, operation: float, strength: float) -> Image.Image:
    """Two numbers, uniform in 0..1 -> the image in grey, solarised (inverted from 128 on) or blurred."""
    match int(3 * operation):
        case 0:
            return image.convert("L").convert(image.mode)
        case 1:
            return ImageOps.solarize(image)
    low, high = _BLUR
    return image.filter(ImageFilter.GaussianBlur(low + (high - low) * strength))


def eval_image(image: Pixels, settings: DataSettings | EvalImages, image_size: tuple[int, int]) -> np.ndarray:
    """Image -> [H, W, C], uint8 or uint16: resized, then cropped to the centre.

    Resizing keeps the aspect and makes image_size data.eval_crop_fraction of the image, as timm does: for a square
    image_size the shorter side becomes floor(side / fraction) and the longer is truncated to whole pixels
    (torchvision's Resize); otherwise both sides cover the target and are rounded (timm's ResizeKeepRatio).
    """
    size = _covering(image.size, tuple(math.floor(side / settings.eval_crop_fraction) for side in image_size[::-1]))
    image = image.resize(size, _RESAMPLE[settings.eval_interpolation])
    left, top = (round((side - target_side) / 2) for side, target_side in zip(size, image_size[::-1], strict=True))
    return as_array(image.crop((left, top, left + image_size[1], top + image_size[0])))


def _covering(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Sizes as (width, height) -> the smallest that covers the target, with the same aspect up to rounding."""
    if target[0] == target[1]:
        return tuple(target[0] * side // min(size) for side in size)
    ratio = min(side / target_side for side, target_side in zip(size, target, strict=True))
    return tuple(round(side / ratio) for side in size)
