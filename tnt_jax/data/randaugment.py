"""RandAugment with timm's notation, "rand-m9-mstd0.5-inc1", and meaning, drawn from seeds and applied with Pillow.

`parse` reads the notation, `draw` makes every random choice as a pure function of the seeds, `apply` applies the
choices to one image. Sources: Cubuk et al., "RandAugment", arXiv 1909.13719; notation, magnitudes and random choices as
in timm's auto_augment.py. Of timm's other sets of operations only the weighted one (tweights) is supported, not those
for DeiT III (t3a, t3aw), AutoAugment or AugMix.
"""

import dataclasses
import functools
import math
import re
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from tnt_jax.data import draws

OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY"),
)
# How often "tweights" draws an operation, relative to the others (timm's _RAND_WEIGHTED_0).
_OFTEN = {"Rotate": 3.0, "ShearX": 2.0, "ShearY": 2.0, "TranslateX": 1.0, "TranslateY": 1.0}
_OFTEN |= {"Color": 0.25, "Sharpness": 0.25, "AutoContrast": 0.25}
WEIGHTS = {name: _OFTEN.get(name, 0.05) for name in OPERATIONS}
Fill = tuple[int, ...]  # one value per channel, in 0..255

_UNIFORM_FROM = 100.0  # a deviation above this means: uniform in 0..m
_EXAMPLE = "'rand-m9-mstd0.5-inc1'"
_PARTS = {  # letters -> field, type, minimum, maximum
    "m": ("magnitude", float, 0.0, 30.0),
    "n": ("layers", int, 1, 100),
    "p": ("probability", float, 0.0, 1.0),
    "mstd": ("deviation", float, 0.0, math.inf),
    "mmax": ("magnitude_max", float, 0.0, 30.0),
    "inc": ("increasing", int, 0, 1),
}


@dataclasses.dataclass(frozen=True)
class Policy:
    """The parsed notation. Magnitudes are clipped to 0..magnitude_max."""

    magnitude: float = 10.0  # m: mean of the magnitude, before it is clipped
    layers: int = 2  # n: operations drawn for an image, with replacement unless weighted
    probability: float = 0.5  # p: probability that a drawn operation is applied
    deviation: float = 0.0  # mstd: standard deviation of the magnitude; infinite: uniform in 0..m
    magnitude_max: float = 10.0  # mmax: the magnitude is clipped to 0..this
    increasing: bool = False  # inc: Posterize, Solarize and the enhancements grow stronger with the magnitude
    weighted: bool = False  # tweights: drawn by WEIGHTS, without replacement, all increasing


class Draws(NamedTuple):
    """The random choices for images, each [..., layers]."""

    operation: np.ndarray  # int, index into OPERATIONS
    applied: np.ndarray  # bool
    magnitude: np.ndarray  # float
    negative: np.ndarray  # bool: the sign of the operations that have one
    bicubic: np.ndarray  # bool: the interpolation of the geometric ones


@functools.lru_cache(maxsize=8)  # called for every image
def parse(notation: str) -> Policy:
    """'rand-m9-mstd0.5-inc1' -> Policy. Raises ValueError with the part that is not understood and what is accepted."""
    where = f"data.randaugment={notation!r}"
    kind, *parts = notation.split("-")
    if kind != "rand":
        raise ValueError(f"{where} must start with 'rand', such as {_EXAMPLE}; '' turns it off")
    values = {}
    if "tweights" in parts:
        values["weighted"] = True
        parts.remove("tweights")
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if match is None or match[1] not in _PARTS:
            raise ValueError(
                f"{where}: {part!r} is not understood. Accepted after 'rand': m (magnitude), n (operations), p "
                "(probability), mstd (deviation), mmax (largest magnitude) and inc (0 or 1), each with its number, and "
                f"tweights, such as {_EXAMPLE}"
            )
        field, read, least, most = _PARTS[match[1]]
        if field in values:
            raise ValueError(f"{where} gives {match[1]!r} twice; keep one")
        if read is int and "." in match[2]:
            raise ValueError(f"{where}: {match[1]!r} needs a whole number, not {match[2]!r}")
        values[field] = read(match[2][:400])  # int() refuses thousands of digits, which are out of range anyway
        most = len(OPERATIONS) if field == "layers" and "weighted" in values else most
        if not least <= values[field] <= most:
            raise ValueError(f"{where}: {match[1]} is {values[field]}, must lie in {least} to {most}")
    policy = Policy(**values)
    deviation = math.inf if policy.deviation > _UNIFORM_FROM else policy.deviation
    increasing = bool(policy.increasing) or policy.weighted
    return dataclasses.replace(policy, deviation=deviation, increasing=increasing)


def draw(seeds: np.ndarray, policy: Policy, interpolation: str = "random") -> Draws:
    """seeds integers [..., 2] -> Draws for each. interpolation: "bilinear", "bicubic" or "random" (either)."""
    uniform = np.moveaxis(draws.uniform(seeds, draws.POLICY, 5, policy.layers), -2, 0)
    operation = (uniform[0] * len(OPERATIONS)).astype(np.int64)
    if policy.weighted:  # without replacement: the largest log weights, each with Gumbel noise
        noise = -np.log(-np.log1p(-draws.uniform(seeds, draws.POLICY_WEIGHTED, len(OPERATIONS))))
        operation = np.argsort(-(np.log(list(WEIGHTS.values())) + noise), axis=-1)[..., : policy.layers]
    if math.isinf(policy.deviation):
        magnitude = uniform[4] * policy.magnitude
    else:
        magnitude = policy.magnitude + policy.deviation * draws.normal(seeds, draws.POLICY_NORMAL, policy.layers)
    return Draws(
        operation=operation,
        applied=uniform[1] < policy.probability,
        magnitude=np.clip(magnitude, 0.0, policy.magnitude_max),
        negative=uniform[2] < 0.5,
        bicubic=uniform[3] < draws.BICUBIC_BELOW[interpolation],
    )


def apply(image: Image.Image, chosen: Draws, policy: Policy, fill: Fill) -> Image.Image:
    """Image of mode RGB or L and its choices [layers] -> an image of the same mode and size.

    fill: one value per channel in 0..255, for pixels that a geometric operation takes from outside the image.
    """
    for operation, applied, *choices in zip(*(field.tolist() for field in chosen), strict=True):
        if applied:
            image = operate(OPERATIONS[int(operation)], image, *choices, policy.increasing, fill)
    return image


def operate(
    name: str, image: Image.Image, magnitude: float, negative: bool, bicubic: bool, increasing: bool, fill: Fill
) -> Image.Image:
    """Applies one of OPERATIONS by name to an image of mode RGB or L. Other arguments as in Draws and `apply`."""
    level = magnitude / 10  # fraction of the operation's own range; mmax may exceed it
    signed = -level if negative else level
    resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR

    def enhanced(kind: type) -> Image.Image:
        return kind(image).enhance(max(1.0 + 0.9 * signed, 0.1) if increasing else 0.1 + 1.8 * level)

    def affine(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)

    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
        case "Rotate":
            return image.rotate(signed * 30.0, resample, fillcolor=fill)
        case "Posterize":  # ImageOps.posterize refuses 0 bits since Pillow 12
            bits = min(max(4 - int(level * 4) if increasing else int(level * 4), 0), 8)
            return image.point([value & ~(2 ** (8 - bits) - 1) for value in range(256)] * len(image.getbands()))
        case "Solarize":
            threshold = min(int(level * 256), 256)
            return ImageOps.solarize(image, 256 - threshold if increasing else threshold)
        case "SolarizeAdd":
            added = min(int(level * 110), 128)
            return image.point(
                [min(value + added, 255) if value < 128 else value for value in range(256)] * len(image.getbands())
            )
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return enhanced(getattr(ImageEnhance, name))
        case "ShearX":
            return affine(1, signed * 0.3, 0, 0, 1, 0)
        case "ShearY":
            return affine(1, 0, 0, signed * 0.3, 1, 0)
        case "TranslateX":
            return affine(1, 0, signed * 0.45 * image.width, 0, 1, 0)
        case "TranslateY":
            return affine(1, 0, 0, 0, 1, signed * 0.45 * image.height)
    raise ValueError(f"{name!r} is not an operation of RandAugment; accepted: {', '.join(OPERATIONS)}")
