"""From a decoded image to the network's size, by Pillow: crop, resize, flip, RandAugment or colour jitter.

What is drawn (`draw`) is a function of the seeds alone. The recipe is timm's, pixel for pixel on the same draws: random
resized crop, flip, then RandAugment, or colour jitter where there is none. Random erasing and mixing happen later, on
the device.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from tnt_jax.data import draws, randaugment
from tnt_jax.data.decoding import Pixels, as_array
from tnt_jax.data.settings import DataSettings, EvalImages

_CROP_TRIES = 10
_JITTER = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


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


def train_image(image: Pixels, chosen: Draws, settings: DataSettings, image_size: tuple[int, int]) -> np.ndarray:
    """Image and the choices for one copy of it (of `draw`, no leading axes) -> [H, W, C], uint8 or uint16."""
    left, top, width, height = crop_box(image.size, chosen, settings)
    bicubic, flip = chosen.choices[:2] > 0
    image = image.crop((left, top, left + width, top + height))
    image = image.resize(image_size[::-1], _RESAMPLE["bicubic" if bicubic else "bilinear"])
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if settings.randaugment:
        policy = randaugment.parse(settings.randaugment)
        mean = np.broadcast_to(settings.mean, len(image.getbands())).tolist()
        fill = tuple(max(0, min(255, round(255 * value))) for value in mean)
        image = randaugment.apply(image, randaugment.Draws(*chosen.choices[2:].reshape(5, -1)), policy, fill)
    elif settings.color_jitter:  # torchvision's ColorJitter without hue
        factors, order = chosen.choices[2:5].tolist(), chosen.choices[5:].astype(int).tolist()
        for number in order:
            image = _JITTER[number](image).enhance(factors[number])
    return as_array(image)


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


def eval_image(image: Pixels, settings: DataSettings | EvalImages, image_size: tuple[int, int]) -> np.ndarray:
    """Image -> [H, W, C], uint8 or uint16: resized, then the centre.

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
    return as_array(image.crop((left, top, left + image_size[1], top + image_size[0])))
