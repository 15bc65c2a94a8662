"""Mixup (arXiv 1710.09412), CutMix (1905.04899) and random erasing (1708.04896) on the device, as timm does them.

One lambda, one box and one choice for a global batch; the partner of an image is its mirror in the batch reversed,
across devices. Boxes to erase are drawn for each image by its place in the global batch. So the outcome depends on the
key and the batch alone, not on how many devices share it.
"""

import jax
import jax.numpy as jnp
from jax import lax

from tnt_jax.training.config import MixingSettings

# timm tries this often to find a box that fits into the image, and leaves the image as it is otherwise.
ERASE_ATTEMPTS = 10


def reverse_batch(x: jax.Array, axis_name: str | None = None) -> jax.Array:
    """x [b, ...], a device's share -> its share of the global batch in reversed order."""
    x = jnp.flip(x, axis=0)
    if axis_name is None:
        return x
    last = lax.axis_size(axis_name) - 1
    return lax.ppermute(x, axis_name, [(device, last - device) for device in range(last + 1)])


def draw_weights(key: jax.Array, height: int, width: int, settings: MixingSettings) -> tuple[jax.Array, jax.Array]:
    """-> (weights [H, W, 1] of the image itself in each pixel, lambda [] of its label), float32.

    Mixup: lambda ~ Beta(alpha, alpha) everywhere. CutMix: 0 in a box of area 1 - lambda around a uniform centre,
    clipped to the image, 1 elsewhere; lambda is then what is left of the image (timm's `correct_lam`).
    """
    mixed_key, choice_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    nothing = jnp.ones((height, width, 1), jnp.float32), jnp.float32(1)
    mixup_on, cutmix_on = settings.mixup_alpha > 0, settings.cutmix_alpha > 0
    if not (mixup_on or cutmix_on) or settings.probability == 0:
        return nothing
    outcomes = []
    if mixup_on:
        share = jax.random.beta(mixup_key, settings.mixup_alpha, settings.mixup_alpha)
        outcomes.append((jnp.full((height, width, 1), share), share))
    if cutmix_on:
        share = jax.random.beta(cutmix_key, settings.cutmix_alpha, settings.cutmix_alpha)
        outside = 1 - _box_around(box_key, height, width, share)
        outcomes.append((outside, outside.mean()))
    weights = outcomes[-1]
    if len(outcomes) == 2:
        weights = _choose(jax.random.bernoulli(choice_key, settings.cutmix_probability), outcomes[1], outcomes[0])
    return _choose(jax.random.bernoulli(mixed_key, settings.probability), weights, nothing)


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    settings: MixingSettings,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """images [b, H, W, 3] float, targets [b, K] -> both mixed with their partners. The key is equal on all devices."""
    if settings.probability == 0 or not (settings.mixup_alpha or settings.cutmix_alpha):
        return images, targets
    weights, share = draw_weights(key, images.shape[1], images.shape[2], settings)
    images = images * weights + reverse_batch(images, axis_name) * (1 - weights)
    targets = targets * share + reverse_batch(targets, axis_name) * (1 - share)
    return images, targets


def random_erase(
    key: jax.Array,
    images: jax.Array,
    settings: MixingSettings,
    axis_name: str | None = None,
) -> jax.Array:
    """images [b, H, W, 3], normalised -> one box of some of them filled with N(0, 1), each pixel and colour for itself.

    The key is the same on all devices; an image's draws come from its place in the global batch.
    """
    if settings.erase_probability == 0:
        return images
    count, height, width, _ = images.shape
    first = lax.axis_index(axis_name) * count if axis_name is not None else 0
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(first + jnp.arange(count))

    def erase(key: jax.Array, image: jax.Array) -> jax.Array:
        box_key, noise_key = jax.random.split(key)
        inside = draw_erased(box_key, height, width, settings)
        return jnp.where(inside, jax.random.normal(noise_key, image.shape, image.dtype), image)

    return jax.vmap(erase)(keys, images)


def draw_erased(key: jax.Array, height: int, width: int, settings: MixingSettings) -> jax.Array:
    """-> [H, W, 1] bool, True in the box of one image to be erased; nowhere with probability 1 - erase_probability.

    Area uniform in erase_area, the logarithm of height / width uniform in erase_aspect's, rounded to pixels; the first
    of ten tries that is smaller than the image on both sides, placed uniformly.
    """
    erased_key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
    low, high = settings.erase_area
    areas = jax.random.uniform(area_key, (ERASE_ATTEMPTS,), minval=low, maxval=high) * (height * width)
    low, high = jnp.log(jnp.array(settings.erase_aspect, jnp.float32))
    aspects = jnp.exp(jax.random.uniform(aspect_key, (ERASE_ATTEMPTS,), minval=low, maxval=high))
    heights = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    chosen = jnp.argmax(fits)
    box_height, box_width = heights[chosen], widths[chosen]
    top = jax.random.randint(top_key, (), 0, jnp.maximum(height - box_height, 0) + 1)
    left = jax.random.randint(left_key, (), 0, jnp.maximum(width - box_width, 0) + 1)
    erased = jax.random.bernoulli(erased_key, settings.erase_probability) & fits.any()
    return erased & _inside(height, width, top, top + box_height, left, left + box_width)


def _box_around(key: jax.Array, height: int, width: int, share: jax.Array) -> jax.Array:
    """-> [H, W, 1] float32, 1 in a box of about 1 - share of the area, its centre uniform, clipped to the image."""
    row_key, column_key = jax.random.split(key)
    side = jnp.sqrt(1 - share)
    half_height = (height * side).astype(jnp.int32) // 2
    half_width = (width * side).astype(jnp.int32) // 2
    row = jax.random.randint(row_key, (), 0, height)
    column = jax.random.randint(column_key, (), 0, width)
    box = _inside(height, width, row - half_height, row + half_height, column - half_width, column + half_width)
    return box.astype(jnp.float32)


def _inside(height: int, width: int, top: jax.Array, bottom: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """-> [H, W, 1] bool, True for rows top <= row < bottom and columns left <= column < right."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return ((rows >= top) & (rows < bottom) & (columns >= left) & (columns < right))[..., None]


def _choose(condition: jax.Array, yes: tuple[jax.Array, ...], no: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(jnp.where(condition, a, b) for a, b in zip(yes, no, strict=True))
