"""From an encoded image to a uint8 array of the network's size: crop, resize, flip, RandAugment or colour jitter.

What is drawn (`draw`) is a function of the seeds alone, so that an image is a function of its seed, whatever thread
makes it. Training images are made by compiled loops that a TensorFlow graph calls, from a JPEG's bytes on (jpeg.py);
TensorFlow decodes all other files, and those for evaluation. The results agree with Pillow on the same image and draws,
since the peers' recipes are Pillow's (resample.py, color.py, geometry.py). Random erasing and mixing happen later, on
the device.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tnt_jax.data import color, destinations, draws, jpeg, randaugment, resample
from tnt_jax.data.compiled import quick
from tnt_jax.data.settings import DataSettings, EvalImages

_CROP_TRIES = 10


class Draws(NamedTuple):
    """The choices for images with leading axes [...]: NumPy arrays from `draw`, tensors in a graph."""

    crop: np.ndarray | tf.Tensor  # float64 [..., tries + 1, 2]: CropDraws' tries, then its corner
    choices: np.ndarray | tf.Tensor  # float64 [..., n]: bicubic, flip, then RandAugment's or colour jitter's


class CropDraws(NamedTuple):
    """The choices for random resized crops, uniform in 0..1 where nothing else is said."""

    area: np.ndarray  # [..., tries]
    aspect: np.ndarray  # [..., tries]
    corner: np.ndarray  # [..., 2], rows and columns
    bicubic: np.ndarray  # bool [...]
    flip: np.ndarray  # bool [...]


def draw(seeds: np.ndarray, settings: DataSettings) -> Draws:
    """seeds integers [..., 2] -> everything that is drawn for the images."""
    crop = draw_crop(seeds, settings)
    choices = [crop.bicubic[..., None], crop.flip[..., None]]
    if settings.randaugment:
        policy = randaugment.parse(settings.randaugment)
        choices += randaugment.draw(seeds, policy, settings.train_interpolation)
    elif settings.color_jitter:
        choices += draw_jitter(seeds, settings.color_jitter)
    return Draws(crop_shares(crop, settings), np.concatenate([part.astype(np.float64) for part in choices], axis=-1))


def train_images(
    images: list[tf.Tensor],
    chosen: Draws,
    places: tf.Tensor,
    destination: tf.Tensor,
    settings: DataSettings,
    image_size: tuple[int, int],
) -> tf.Tensor:
    """Makes k copies of each of g images and puts them into an array -> how many that were, int64 scalar.

    images: each an encoded scalar string or uint8 [h, w, 3]. chosen: Draws [g, k, ...]. places: int64 [g, k], the row
    of `destination` (a number from `destinations.lend`, array [n, H, W, 3] uint8) for each copy; one with -1 is not
    made. g and k are static.

    Each copy is a random resized crop, flipped or not, then RandAugment, or colour jitter where data.randaugment is
    empty. An image is decoded once for its copies, and of most JPEGs (jpeg.py) only the part that they need. An image
    that cannot be decoded is a TensorFlow error when the graph runs.

    Several images go together because each call from a graph costs as much as a small operation.
    """
    count, copies = chosen.crop.shape[:2]
    if count != len(images) or copies is None:
        raise ValueError(f"{len(images)} images, draws {chosen.crop.shape}: must be [images, copies, ...], both static")
    arguments = [destination, places, *chosen, *images]
    return tf.ensure_shape(tf.numpy_function(_maker(settings, image_size), arguments, tf.int64), [])


def eval_image(image: tf.Tensor, settings: DataSettings | EvalImages, image_size: tuple[int, int]) -> tf.Tensor:
    """Encoded scalar string or uint8 [h, w, 3] -> uint8 [H, W, 3]: resized, then the centre.

    The image is resized so that image_size is data.eval_crop_fraction of it, its aspect kept, as timm does: for a
    square the shorter side becomes floor(side / fraction) and the longer is cut to whole pixels (torchvision's Resize);
    for another shape both sides cover the target and are rounded (timm's ResizeKeepRatio).
    """
    image = decode(image)
    size = tf.shape(image)[:2]
    target = [math.floor(side / settings.eval_crop_fraction) for side in image_size]
    if target[0] == target[1]:
        resized = target[0] * size // tf.reduce_min(size)
    else:
        ratio = tf.reduce_min(tf.cast(size, tf.float64) / tf.constant(target, tf.float64))
        resized = tf.cast(tf.round(tf.cast(size, tf.float64) / ratio), tf.int32)
    corner = tf.cast(tf.round(tf.cast(resized - tf.constant(image_size), tf.float64) / 2), tf.int32)
    bicubic = settings.eval_interpolation == "bicubic"

    def part(image: np.ndarray, resized: np.ndarray, corner: np.ndarray) -> np.ndarray:
        return resample.resize(image, image_size, bicubic, resized=resized, corner=corner)

    made = tf.numpy_function(part, [image, resized, corner], tf.uint8, stateful=False)
    return tf.ensure_shape(made, [*image_size, 3])


def decode(image: tf.Tensor) -> tf.Tensor:
    """Encoded scalar string -> uint8 [h, w, 3]; a decoded image passes through.

    JPEG (grey and CMYK too), PNG (transparency dropped), BMP and GIF (its first frame).
    """
    if image.dtype != tf.string:
        return image
    image = tf.cond(
        tf.io.is_jpeg(image),
        lambda: tf.io.decode_jpeg(image, channels=3, dct_method="INTEGER_ACCURATE"),  # Pillow's choice
        lambda: tf.io.decode_image(image, channels=3, expand_animations=False),
    )
    image.set_shape([None, None, 3])
    return image


def draw_crop(seeds: np.ndarray, settings: DataSettings) -> CropDraws:
    """seeds integers [..., 2] -> the choices for crops and flips."""
    tries = np.moveaxis(draws.uniform(seeds, draws.CROP, 2, _CROP_TRIES), -2, 0)
    choices = draws.uniform(seeds, draws.CROP_CHOICES, 4)
    below = {"random": 0.5, "bicubic": 1.0, "bilinear": 0.0}[settings.train_interpolation]
    return CropDraws(*tries, choices[..., :2], choices[..., 2] < below, choices[..., 3] < settings.flip_probability)


def crop_shares(crop: CropDraws, settings: DataSettings) -> np.ndarray:
    """Draws for crops -> float64 [..., tries + 1, 2] for `crop_box`.

    Each try's rows and columns as multiples of the square root of the image's pixels: its area uniform in
    data.crop_area, its aspect (width / height) log-uniform in data.crop_aspect. Last the corner's draws.
    """
    low, high = settings.crop_area
    area = low + (high - low) * crop.area
    low, high = (math.log(aspect) for aspect in settings.crop_aspect)
    aspect = np.exp(low + (high - low) * crop.aspect)
    tries = np.sqrt(np.stack([area / aspect, area * aspect], axis=-1))
    return np.concatenate([tries, crop.corner[..., None, :]], axis=-2)


def crop_boxes(size: tuple[int, int], shares: np.ndarray, settings: DataSettings) -> np.ndarray:
    """Rows and columns of an image -> crops int64 [k, 4]: top, left, height, width (torchvision's order).

    shares [k, tries + 1, 2]: crop_shares'. The first of the ten tries that fits, anywhere in the image. If none fits:
    the largest centred part whose aspect is allowed.
    """
    low, high = settings.crop_aspect
    return _boxes(*size, shares, low, high)


@quick
def _boxes(height, width, shares, low, high):
    boxes, side = np.empty((len(shares), 4), np.int64), np.sqrt(np.float64(height * width))
    for copy in range(len(shares)):
        found = False
        for number in range(shares.shape[1] - 1):
            rows, columns = np.rint(shares[copy, number, 0] * side), np.rint(shares[copy, number, 1] * side)
            found = 0 < rows <= height and 0 < columns <= width
            if found:
                break
        if not found:  # at least one pixel, of an aspect that the image is too small for
            rows = max(np.rint(min(np.float64(height), width * (1 / low))), 1.0)
            columns = max(np.rint(min(np.float64(width), height * high)), 1.0)
        boxes[copy, 2], boxes[copy, 3] = np.int64(rows), np.int64(columns)
        for axis, free in enumerate((height - boxes[copy, 2], width - boxes[copy, 3])):
            corner = min(np.int64(shares[copy, -1, axis] * (free + 1)), free)
            boxes[copy, axis] = corner if found else free // 2
    return boxes


def draw_jitter(seeds: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """seeds integers [..., 2] -> for `color_jitter`: factors float64 [..., 3] and order int [..., 3].

    Brightness, contrast and saturation each by a factor uniform in max(0, 1 - strength) to 1 + strength.
    """
    uniform = draws.uniform(seeds, draws.JITTER, 6)
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    return low + (high - low) * uniform[..., :3], np.argsort(uniform[..., 3:], axis=-1)


def color_jitter(image: np.ndarray, factors: np.ndarray, order: np.ndarray) -> np.ndarray:
    """image uint8 [H, W, 3] -> uint8 [H, W, 3], as torchvision's ColorJitter without hue.

    Brightness, contrast and saturation by their factors [3], in the order [3] (their numbers).
    """
    operations = (color.brightness, color.contrast, color.color)
    for number in order.astype(int).tolist():
        image = operations[number](image, float(factors[number]))
    return image


def _crops(
    image: bytes | np.ndarray,
    shares: np.ndarray,
    chosen: np.ndarray,
    wanted: np.ndarray,
    settings: DataSettings,
    size: tuple[int, int],
) -> np.ndarray:
    """An image as in train_images, its k copies' shares, choices and whether they are wanted -> uint8 [k, *size, 3].

    What is decoded, and so whether it can be, does not depend on which copies are wanted: other processes may make the
    others.
    """
    made = np.empty((len(shares), *size, 3), np.uint8)
    bicubic, flip = chosen[:, 0] > 0, chosen[:, 1] > 0
    if not isinstance(image, np.ndarray) or not image.shape:
        image = image if isinstance(image, bytes) else image.item()  # a string tensor, in a graph or outside
        file = jpeg.opened(image)
        if file is not None:
            boxes = crop_boxes(file.size, shares, settings)
            if jpeg.resized_boxes(file, boxes, wanted, bicubic, flip, made):
                return made
        image = decode(tf.constant(image)).numpy()
    image = np.ascontiguousarray(image)
    resample.resize_boxes(image, crop_boxes(image.shape[:2], shares, settings), wanted, bicubic, flip, made)
    return made


def _maker(settings: DataSettings, image_size: tuple[int, int]) -> Callable:
    """-> (destination, places [g, k], shares [g, k, ...], choices [g, k, n], g images) -> copies made."""
    policy = randaugment.parse(settings.randaugment) if settings.randaugment else None
    fill = tuple(max(0, min(255, round(255 * level))) for level in settings.mean)

    def make(
        destination: np.ndarray,
        places: np.ndarray,
        shares: np.ndarray,
        choices: np.ndarray,
        *images: bytes | np.ndarray,
    ) -> np.ndarray:
        target = destinations.borrowed(int(destination))
        for image, rows, tries, chosen in zip(images, places, shares, choices, strict=True):
            if (rows >= 0).any():
                crops = _crops(image, tries, chosen, rows >= 0, settings, image_size)
                for place, crop, choice in zip(rows.tolist(), crops, chosen, strict=True):
                    if place >= 0:
                        target[place] = augmented(crop, choice)
        return np.sum(places >= 0)

    def augmented(image: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        if policy is not None:
            return randaugment.apply(image, randaugment.Draws(*chosen[2:].reshape(5, policy.layers)), policy, fill)
        return color_jitter(image, chosen[2:5], chosen[5:]) if settings.color_jitter else image

    return make
