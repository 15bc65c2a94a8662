"""RandAugment in timm's notation, "rand-m9-mstd0.5-inc1". Free of TensorFlow, so that a config is checked early.

Source of the notation and its meaning: timm's auto_augment.py. Of its other sets of operations (t) the weighted one is
taken; those for DeiT III (t3a, t3aw), its AutoAugment and its AugMix are not.
"""

import dataclasses
import math
import re

OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
# How often "tweights" draws an operation, relative to the others (timm's _RAND_WEIGHTED_0).
WEIGHTS = {"Rotate": 3.0, "ShearX": 2.0, "ShearY": 2.0, "TranslateX": 1.0, "TranslateY": 1.0}
WEIGHTS |= dict.fromkeys(("Color", "Sharpness", "AutoContrast"), 0.25)
WEIGHTS |= {name: 0.05 for name in OPERATIONS if name not in WEIGHTS}
_UNIFORM_FROM = 100.0  # a deviation above this means: uniform in 0..m
_LARGEST = 30.0  # the largest magnitude in the paper
_MOST_LAYERS = 100
_EXAMPLE = "'rand-m9-mstd0.5-inc1'"


@dataclasses.dataclass(frozen=True)
class Policy:
    """What the notation says. Magnitudes are in 0..10 unless magnitude_max says otherwise."""

    magnitude: float = 10.0  # m: mean of the magnitude, before it is clipped
    layers: int = 2  # n: operations drawn for an image, with replacement unless weighted
    probability: float = 0.5  # p: that a drawn operation is applied
    deviation: float = 0.0  # mstd: of the magnitude, normal; infinite: uniform in 0..m
    magnitude_max: float = 10.0  # mmax: the magnitude is clipped to 0..this
    increasing: bool = False  # inc: Posterize, Solarize and the enhancements grow stronger with the magnitude
    weighted: bool = False  # tweights: drawn as WEIGHTS say, without replacement, all of them increasing


def parse(notation: str) -> Policy:
    """'rand-m9-mstd0.5-inc1' -> Policy. ValueError names the part that is not understood and what is accepted."""
    kind, *parts = notation.split("-")
    if kind != "rand":
        raise ValueError(f"data.randaugment={notation!r} must start with 'rand', such as {_EXAMPLE}; empty: none")
    readers = {
        "m": ("magnitude", float),
        "n": ("layers", int),
        "p": ("probability", float),
        "mstd": ("deviation", float),
        "mmax": ("magnitude_max", float),
        "inc": ("increasing", int),
    }
    values = {}
    if "tweights" in parts:
        values["weighted"] = True
        parts.remove("tweights")
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if match is None or match[1] not in readers:
            raise ValueError(
                f"data.randaugment={notation!r}: {part!r} is not understood. Accepted after 'rand': m (magnitude), "
                f"n (operations), p (probability), mstd (deviation), mmax (largest magnitude) and inc (0 or 1), each "
                f"with its number, and tweights, such as {_EXAMPLE}"
            )
        field, read = readers[match[1]]
        if field in values:
            raise ValueError(f"data.randaugment={notation!r} gives {match[1]!r} twice; keep one")
        try:
            values[field] = read(match[2])
        except ValueError as error:
            raise ValueError(
                f"data.randaugment={notation!r}: {match[1]!r} needs a whole number, not {match[2]!r}"
            ) from error
    policy = Policy(**values)
    _check(notation, policy)
    deviation = math.inf if policy.deviation > _UNIFORM_FROM else policy.deviation
    increasing = bool(policy.increasing) or policy.weighted
    return dataclasses.replace(policy, deviation=deviation, increasing=increasing)


def _check(notation: str, policy: Policy) -> None:
    limits = {
        "m": (policy.magnitude, 0.0, _LARGEST),
        "mmax": (policy.magnitude_max, 0.0, _LARGEST),
        "n": (policy.layers, 1, len(OPERATIONS) if policy.weighted else _MOST_LAYERS),
        "p": (policy.probability, 0.0, 1.0),
        "inc": (policy.increasing, 0, 1),
    }
    for letters, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise ValueError(f"data.randaugment={notation!r}: {letters} is {value}, must lie in {low} to {high}")
