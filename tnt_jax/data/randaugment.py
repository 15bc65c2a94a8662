"""RandAugment in timm's notation and with timm's meaning, drawn from seeds.

`parse` (policy.py) reads the notation, `draw` makes every random choice as a pure function of the seeds, `apply`
carries the choices for one image out. The operations are Pillow's, on which timm builds (color.py and geometry.py).
Sources: Cubuk et al., "RandAugment", arXiv 1909.13719; magnitudes and random parts as in timm's auto_augment.py.
"""

import math
from typing import NamedTuple

import numpy as np

from tnt_jax.data import color, draws, geometry
from tnt_jax.data.policy import OPERATIONS, WEIGHTS, Policy, parse

__all__ = ["OPERATIONS", "WEIGHTS", "Draws", "Policy", "apply", "draw", "operate", "parse"]

_FULL_MAGNITUDE = 10.0  # where an operation's own range ends; mmax may go beyond


class Draws(NamedTuple):
    """The choices for images, [..., layers] each."""

    operation: np.ndarray  # int, index into OPERATIONS
    applied: np.ndarray  # bool
    magnitude: np.ndarray  # float
    negative: np.ndarray  # bool: the sign of the operations that have one
    bicubic: np.ndarray  # bool: the interpolation of the geometric ones


def draw(seeds: np.ndarray, policy: Policy, interpolation: str = "random") -> Draws:
    """seeds integers [..., 2] -> Draws for each. interpolation: "bilinear", "bicubic" or "random" (either)."""
    uniform = np.moveaxis(draws.uniform(seeds, draws.POLICY, 5, policy.layers), -2, 0)
    operation = (uniform[0] * len(OPERATIONS)).astype(np.int64)
    if policy.weighted:  # without replacement: the largest of their logarithms, each with Gumbel noise
        noise = -np.log(-np.log1p(-draws.uniform(seeds, draws.POLICY_WEIGHTED, len(OPERATIONS))))
        weights = np.log([WEIGHTS[name] for name in OPERATIONS])
        operation = np.argsort(-(weights + noise), axis=-1)[..., : policy.layers]
    if math.isinf(policy.deviation):
        magnitude = uniform[4] * policy.magnitude
    else:
        magnitude = policy.magnitude + policy.deviation * draws.normal(seeds, draws.POLICY_NORMAL, policy.layers)
    bicubic = {"random": uniform[3] < 0.5, "bicubic": uniform[3] < 1.0, "bilinear": uniform[3] < 0.0}[interpolation]
    return Draws(
        operation=operation,
        applied=uniform[1] < policy.probability,
        magnitude=np.clip(magnitude, 0.0, policy.magnitude_max),
        negative=uniform[2] < 0.5,
        bicubic=bicubic,
    )


def apply(image: np.ndarray, chosen: Draws, policy: Policy, fill: geometry.Fill) -> np.ndarray:
    """image uint8 [H, W, 3], the choices for it -> uint8 [H, W, 3].

    fill: red, green, blue in 0..255, shown where a geometric operation leaves the image.
    """
    for operation, applied, *choices in zip(*(field.tolist() for field in chosen), strict=True):
        if applied:
            image = operate(OPERATIONS[int(operation)], image, *choices, policy.increasing, fill)
    return image


def operate(
    name: str,
    image: np.ndarray,
    magnitude: float,
    negative: bool,
    bicubic: bool,
    increasing: bool,
    fill: geometry.Fill,
) -> np.ndarray:
    """One operation of OPERATIONS by name: image uint8 [H, W, 3] -> uint8 [H, W, 3]; the rest as in Draws."""
    level = magnitude / _FULL_MAGNITUDE
    signed = -level if negative else level
    if name in _PLAIN:
        return _PLAIN[name](image)
    if name in _GEOMETRIC:
        move, largest = _GEOMETRIC[name]
        return move(image, signed * largest, bicubic, fill)
    if name in _ENHANCEMENTS:
        return _ENHANCEMENTS[name](image, max(1.0 + 0.9 * signed, 0.1) if increasing else 0.1 + 1.8 * level)
    if name == "Posterize":
        bits = int(level * 4)
        return color.posterize(image, min(max(4 - bits if increasing else bits, 0), 8))
    if name == "Solarize":
        threshold = min(int(level * 256), 256)
        return color.solarize(image, 256 - threshold if increasing else threshold)
    if name == "SolarizeAdd":
        return color.solarize_add(image, min(int(level * 110), 128))
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
