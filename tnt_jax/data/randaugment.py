"""RandAugment in timm's notation and with timm's meaning, drawn from a seed.

`parse` (policy.py) reads the notation, `draw` makes every random choice for one image as a pure function of the seed,
`apply` carries the choices out. The operations agree with Pillow, on which timm builds (color.py and geometry.py).
Sources: Cubuk et al., "RandAugment", arXiv 1909.13719; magnitudes and random parts as in timm's auto_augment.py.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tnt_jax.data import color, geometry
from tnt_jax.data.policy import OPERATIONS, WEIGHTS, Policy, parse

__all__ = ["OPERATIONS", "WEIGHTS", "Draws", "Policy", "apply", "draw", "operate", "parse"]

_FULL_MAGNITUDE = 10.0  # where an operation's own range ends; mmax may go beyond


class Draws(NamedTuple):
    """The choices for one image, [layers] each."""

    operation: tf.Tensor  # int32, index into OPERATIONS
    applied: tf.Tensor  # bool
    magnitude: tf.Tensor  # float32
    negative: tf.Tensor  # bool: the sign of the operations that have one
    bicubic: tf.Tensor  # bool: the interpolation of the geometric ones


def draw(seed: tf.Tensor, policy: Policy, interpolation: str = "random") -> Draws:
    """seed [2] integers -> Draws for one image. interpolation: "bilinear", "bicubic" or "random" (either)."""
    seeds = tf.random.split(seed, 2, alg="philox")
    uniform = tf.unstack(tf.random.stateless_uniform([5, policy.layers], seeds[0], alg="philox"))
    operation = tf.cast(uniform[0] * len(OPERATIONS), tf.int32)
    if policy.weighted:  # without replacement: the largest of their logarithms, each with Gumbel noise
        noise = tf.random.stateless_uniform([len(OPERATIONS)], tf.random.fold_in(seed, 1, alg="philox"), alg="philox")
        weights = np.array([WEIGHTS[name] for name in OPERATIONS], np.float32)
        operation = tf.math.top_k(np.log(weights) - tf.math.log(-tf.math.log(noise)), policy.layers).indices
    if math.isinf(policy.deviation):
        magnitude = uniform[4] * policy.magnitude
    else:
        normal = tf.random.stateless_normal([policy.layers], seeds[1], alg="philox")
        magnitude = policy.magnitude + policy.deviation * normal
    bicubic = {
        "random": uniform[3] < 0.5,
        "bicubic": tf.fill([policy.layers], True),
        "bilinear": tf.fill([policy.layers], False),
    }[interpolation]
    return Draws(
        operation=tf.minimum(operation, len(OPERATIONS) - 1),
        applied=uniform[1] < policy.probability,
        magnitude=tf.clip_by_value(magnitude, 0.0, policy.magnitude_max),
        negative=uniform[2] < 0.5,
        bicubic=bicubic,
    )


def apply(image: tf.Tensor, draws: Draws, policy: Policy, fill: geometry.Fill) -> tf.Tensor:
    """image uint8 [H, W, 3] (static), draws for it -> uint8 [H, W, 3]. Only the drawn operations are computed.

    fill: red, green, blue in 0..255, shown where a geometric operation leaves the image.
    """
    branches = _branches(tuple(image.shape), policy.increasing, fill)
    for layer in range(policy.layers):
        index = tf.where(draws.applied[layer], draws.operation[layer], len(OPERATIONS))
        # The raw operation calls the chosen function. tf.switch_case would weave all of them into the graph, once for
        # each layer and copy: seconds of tracing, and every image would pass the nodes of all.
        inputs = [image, *(part[layer] for part in draws[2:])]
        (image,) = tf.raw_ops.StatelessCase(
            branch_index=index, input=inputs, Tout=[tf.uint8], branches=branches, output_shapes=[image.shape]
        )
    return image


@functools.lru_cache(maxsize=16)
def _branches(shape: tuple[int, int, int], increasing: bool, fill: geometry.Fill) -> list[Callable]:
    """Graph functions (image, magnitude, negative, bicubic) -> [image]: the OPERATIONS, and one that does nothing."""
    signature = [tf.TensorSpec(shape, tf.uint8), *(tf.TensorSpec([], kind) for kind in (tf.float32, tf.bool, tf.bool))]

    def traced(function: Callable) -> Callable:
        return tf.function(function, autograph=False).get_concrete_function(*signature)

    with tf.init_scope():  # functions of their own, whatever graph is being built
        operations = [
            traced(lambda image, *draws, name=name: operate(name, image, *draws, increasing, fill))
            for name in OPERATIONS
        ]
        return [*operations, traced(lambda image, *draws: tf.identity(image))]


def operate(
    name: str,
    image: tf.Tensor,
    magnitude: tf.Tensor,
    negative: tf.Tensor,
    bicubic: tf.Tensor,
    increasing: bool,
    fill: geometry.Fill,
) -> tf.Tensor:
    """One operation of OPERATIONS by name: image uint8 [H, W, 3] -> uint8 [H, W, 3]; the rest scalars as in Draws."""
    # float64: 0.9 * 110 must not become 98 where it is cut to a whole number
    level = tf.cast(magnitude, tf.float64) / _FULL_MAGNITUDE
    signed = tf.where(negative, -level, level)
    if name in _PLAIN:
        return _PLAIN[name](image)
    if name in _GEOMETRIC:
        move, largest = _GEOMETRIC[name]
        return move(image, tf.cast(signed * largest, tf.float32), bicubic, fill)
    if name in _ENHANCEMENTS:
        factor = tf.maximum(1.0 + 0.9 * signed, 0.1) if increasing else 0.1 + 1.8 * level
        return _ENHANCEMENTS[name](image, tf.cast(factor, tf.float32))
    if name == "Posterize":
        bits = tf.cast(level * 4, tf.int32)
        return color.posterize(image, tf.clip_by_value(4 - bits if increasing else bits, 0, 8))
    if name == "Solarize":
        threshold = tf.minimum(tf.cast(level * 256, tf.int32), 256)
        return color.solarize(image, 256 - threshold if increasing else threshold)
    if name == "SolarizeAdd":
        return color.solarize_add(image, tf.minimum(tf.cast(level * 110, tf.int32), 128))
    raise ValueError(f"{name!r} is no operation of RandAugment; accepted: {', '.join(OPERATIONS)}")


_PLAIN = {"AutoContrast": color.auto_contrast, "Equalize": color.equalize, "Invert": color.invert}
_ENHANCEMENTS = {
    "Color": color.color,
    "Contrast": color.contrast,
    "Brightness": color.brightness,
    "Sharpness": color.sharpness,
}
_GEOMETRIC = {  # the function and its argument at magnitude 10: degrees, pixels a pixel, shares of the side
    "Rotate": (geometry.rotate, 30.0),
    "ShearX": (geometry.shear_x, 0.3),
    "ShearY": (geometry.shear_y, 0.3),
    "TranslateX": (geometry.translate_x, 0.45),
    "TranslateY": (geometry.translate_y, 0.45),
}
