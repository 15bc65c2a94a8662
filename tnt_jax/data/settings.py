"""The typed form of `config.data`: one field a key, the same names, checked when it is made. Free of TensorFlow."""

import dataclasses
import sys
from typing import Any

from tnt_jax.data import policy

INTERPOLATIONS = ("bilinear", "bicubic")

_STRINGS = (
    *("name", "directory", "train_split", "eval_split"),
    *("train_interpolation", "eval_interpolation", "randaugment"),
)
_INT32 = 2**31 - 1  # the type of an example's number
_MOST = {
    "repeated_augmentation": _INT32,
    "reader_threads": 1024,
    "synthetic_examples": 10**8,
    "max_faulty_images": _INT32,
}


@dataclasses.dataclass(frozen=True)
class EvalImages:
    """How an image becomes the network's input where no data set is at hand: keys of `config.data`, the same meanings.

    The defaults are TNT's published weights' (recipe of the paper; timm has the same).
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    eval_crop_fraction: float = 0.9
    eval_interpolation: str = "bicubic"


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which examples, and what happens to an image before it is a [H, W, 3] uint8 array.

    `DataSettings(**config.data)` is the only way in: configs/default.py declares the values, so there are no defaults.
    Raises ValueError with the key's name (`data.crop_area`), the value found and what is accepted.
    """

    name: str  # any tfds name ("imagenet2012", "cifar10", "x/config:1.0.0"), "folder", "digits" or "synthetic"
    directory: str  # tfds' data_dir, or the folder's root; empty: tfds' default
    train_split: str  # tfds split notation, such as "train[:80%]"
    eval_split: str  # tfds split notation
    mean: tuple[float, float, float]  # of the pixels in 0..1, red, green, blue; subtracted on the device, not here
    std: tuple[float, float, float]  # of the pixels in 0..1, red, green, blue; divided by on the device, not here
    repeated_augmentation: int  # augmented copies of an image in a global batch; 1: none
    crop_area: tuple[float, float]  # random resized crop: smallest and largest share of the image's area, in 0..1
    crop_aspect: tuple[float, float]  # random resized crop: smallest and largest width / height
    train_interpolation: str  # "bilinear", "bicubic", or "random" (either, drawn for each image)
    flip_probability: float  # left-right, in 0..1
    randaugment: str  # timm's notation, such as "rand-m9-mstd0.5-inc1"; empty: none
    color_jitter: float  # brightness, contrast and saturation by a factor in 1 +- this; only where randaugment is empty
    eval_crop_fraction: float  # side of the centre crop / shorter side of the resized image, in 0..1
    eval_interpolation: str  # "bilinear" or "bicubic"
    reader_threads: (
        int  # images augmented at a time in each of the two batches under way; 0: one a core; never changes a batch
    )
    on_device: bool  # the training split lies on every device, and crops and flips are drawn there
    synthetic_examples: int  # examples in each split of the "synthetic" set
    max_faulty_images: int  # different undecodable images of the training split that are replaced; one more: an error
    allow_faulty_eval: bool  # leave undecodable images out of an evaluation, instead of an error

    def __post_init__(self) -> None:
        for field in _STRINGS:
            value = getattr(self, field)
            _check(isinstance(value, str), field, value, "a string")
            # Neither a path nor a message can hold these: what opens files would fail with words of its own.
            _check(value.isprintable() or not value, field, value, "of characters that can be printed")
        for field in ("name", "train_split", "eval_split"):
            _check(getattr(self, field).strip() != "", field, getattr(self, field), "a non-empty string")
        if self.randaugment:
            policy.parse(self.randaugment)
        for field, length in {"mean": 3, "std": 3, "crop_area": 2, "crop_aspect": 2}.items():
            values = getattr(self, field)
            sound = isinstance(values, (tuple, list)) and len(values) == length and all(map(_is_number, values))
            _check(sound, field, values, f"a tuple of {length} numbers")
            object.__setattr__(self, field, tuple(float(value) for value in values))
        least_of = {"repeated_augmentation": 1, "reader_threads": 0, "synthetic_examples": 1, "max_faulty_images": 0}
        for field, least in least_of.items():
            value = getattr(self, field)
            most = _MOST[field]
            sound = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
            _check(sound, field, value, f"a whole number from {least} to {most:,}")
        _check(isinstance(self.on_device, bool), "on_device", self.on_device, "True or False")
        _check(isinstance(self.allow_faulty_eval, bool), "allow_faulty_eval", self.allow_faulty_eval, "True or False")
        _check(all(abs(value) <= 1e6 for value in self.mean), "mean", self.mean, "at most 1e6, and at least -1e6")
        _check(all(1e-6 <= value <= 1e6 for value in self.std), "std", self.std, "greater than 0: from 1e-6 to 1e6")
        low, high = self.crop_area
        _check(0 < low <= high <= 1, "crop_area", self.crop_area, "two shares with 0 < smallest <= largest <= 1")
        low, high = self.crop_aspect
        accepted = "two ratios with 0.001 <= smallest <= largest <= 1000"
        _check(1e-3 <= low <= high <= 1e3, "crop_aspect", self.crop_aspect, accepted)
        _check_number("flip_probability", self.flip_probability, 0.0, 1.0)
        _check_number("color_jitter", self.color_jitter, 0.0, 1.0)
        if self.on_device and (self.randaugment or self.color_jitter):
            raise ValueError(
                "data.on_device=True crops and flips on the device and has no operations on colours there: set "
                f"data.randaugment={self.randaugment!r} to '' and data.color_jitter={self.color_jitter} to 0."
            )
        _check_number("eval_crop_fraction", self.eval_crop_fraction, 0.01, 1.0)  # it is a size that is divided
        accepted = (*INTERPOLATIONS, "random")
        _check(
            self.train_interpolation in accepted, "train_interpolation", self.train_interpolation, f"one of {accepted}"
        )
        accepted = INTERPOLATIONS
        _check(self.eval_interpolation in accepted, "eval_interpolation", self.eval_interpolation, f"one of {accepted}")


def shown(value: Any) -> str:
    """A value as an error message has it, cut where it is long. Python itself refuses to write very long numbers."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"{'-' * (value < 0)}2**{value.bit_length() - 1} or more"
    text = repr(value) if not isinstance(value, (tuple, list)) else f"({', '.join(map(shown, value))})"
    return text if len(text) <= 200 else f"{text[:150]}... ({len(text)} characters)"


def _is_number(value: Any) -> bool:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool)
    return sound and -sys.float_info.max <= value <= sys.float_info.max  # math.isfinite cannot take 10**400


def _check_number(field: str, value: Any, low: float, high: float) -> None:
    _check(_is_number(value) and low <= value <= high, field, value, f"a number from {low} to {high}")


def _check(sound: bool, field: str, value: Any, accepted: str) -> None:
    """Raises ValueError that names the config key, the value and what is accepted, unless `sound`."""
    if not sound:
        raise ValueError(f"data.{field}={shown(value)}: must be {accepted}. Set it by --config.data.{field}=...")
