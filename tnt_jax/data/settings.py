"""The typed form of `config.data`: one field a key, the same names, checked when it is made."""

import dataclasses
import sys
from typing import Any

from tnt_jax.data import randaugment

INTERPOLATIONS = ("bilinear", "bicubic")

_INT32 = 2**31 - 1  # the type of an example's number
_WHOLE_NUMBERS = {  # key -> least, most
    "repeated_augmentation": (1, _INT32),
    "worker_processes": (-1, 1024),
    "synthetic_examples": (1, 10**8),
    "max_faulty_images": (0, _INT32),
}
_NUMBERS = {"flip_probability": (0.0, 1.0), "color_jitter": (0.0, 1.0), "eval_crop_fraction": (0.01, 1.0)}


@dataclasses.dataclass(frozen=True)
class EvalImages:
    """How an image becomes the network's input where no data set is at hand: keys of `config.data`, the same meanings.

    The defaults are TNT's published weights' (recipe of the paper; timm has the same).
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    eval_crop_fraction: float = 0.9
    eval_interpolation: str = "bicubic"
    exif_orientation: bool = True


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which examples, and what happens to an image before it is a [H, W, 3] uint8 array.

    `DataSettings(**config.data)` is the only way in: configs/default.py has the values, so there are no defaults.
    Raises ValueError with the key's name (`data.crop_area`), the value found and what is accepted.
    """

    name: str  # any tfds name ("imagenet2012", "cifar10", "x/config:1.0.0"), "folder", "digits" or "synthetic"
    directory: str  # tfds' data_dir, or the folder's root; empty: tfds' default
    train_split: str  # tfds split notation, such as "train[:80%]"
    eval_split: str  # tfds split notation
    mean: tuple[float, float, float]  # of the pixels in 0..1, red, green, blue; subtracted on the device, not here
    std: tuple[float, float, float]  # of the pixels in 0..1, red, green, blue; divided by on the device, not here
    repeated_augmentation: int  # augmented copies of an image in a global batch; 1: none
    crop_area: tuple[float, float]  # random resized crop: smallest and largest part of the image's area, in 0..1
    crop_aspect: tuple[float, float]  # random resized crop: smallest and largest width / height
    train_interpolation: str  # "bilinear", "bicubic", or "random" (either, drawn for each image)
    flip_probability: float  # left-right, in 0..1
    randaugment: str  # timm's notation, such as "rand-m9-mstd0.5-inc1"; empty: none
    color_jitter: float  # brightness, contrast and saturation by a factor in 1 +- this; only where randaugment is empty
    eval_crop_fraction: float  # side of the centre crop / shorter side of the resized image, in 0..1
    eval_interpolation: str  # "bilinear" or "bicubic"
    exif_orientation: bool  # images of a folder are turned as their EXIF says; those of tfds stay as they are stored
    worker_processes: int  # that make batches; 0: threads of this process; -1: by cores and set; never changes a batch
    on_device: bool  # the training split lies on every device, and crops and flips are drawn there
    synthetic_examples: int  # examples in each split of the "synthetic" set
    max_faulty_images: int  # different undecodable images of the training split that are replaced; one more: an error
    allow_faulty_eval: bool  # leave undecodable images out of an evaluation, instead of an error

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is str:
                # Neither a path nor a message can hold others: what opens files would fail with words of its own.
                sound = isinstance(value, str) and (value.isprintable() or not value)
                _check(sound, field.name, value, "a string of characters that can be printed")
            elif field.type is bool:
                _check(isinstance(value, bool), field.name, value, "True or False")
            elif field.type not in (int, float):
                length = len(field.type.__args__)
                sound = isinstance(value, (tuple, list)) and len(value) == length and all(map(_is_number, value))
                _check(sound, field.name, value, f"a tuple of {length} numbers")
                object.__setattr__(self, field.name, tuple(float(number) for number in value))
        for key, (least, most) in _WHOLE_NUMBERS.items():
            value = getattr(self, key)
            sound = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
            _check(sound, key, value, f"a whole number from {least} to {most:,}")
        for key, (low, high) in _NUMBERS.items():
            value = getattr(self, key)
            _check(_is_number(value) and low <= value <= high, key, value, f"a number from {low} to {high}")
        for key in ("name", "train_split", "eval_split"):
            _check(getattr(self, key).strip() != "", key, getattr(self, key), "a non-empty string")
        self._check_augmentation()

    def _check_augmentation(self) -> None:
        if self.randaugment:
            randaugment.parse(self.randaugment)
        _check(all(abs(value) <= 1e6 for value in self.mean), "mean", self.mean, "at most 1e6, and at least -1e6")
        _check(all(1e-6 <= value <= 1e6 for value in self.std), "std", self.std, "greater than 0: from 1e-6 to 1e6")
        low, high = self.crop_area
        _check(0 < low <= high <= 1, "crop_area", self.crop_area, "two numbers with 0 < smallest <= largest <= 1")
        low, high = self.crop_aspect
        accepted = "two ratios with 0.001 <= smallest <= largest <= 1000"
        _check(1e-3 <= low <= high <= 1e3, "crop_aspect", self.crop_aspect, accepted)
        for key, accepted in {
            "train_interpolation": (*INTERPOLATIONS, "random"),
            "eval_interpolation": INTERPOLATIONS,
        }.items():
            _check(getattr(self, key) in accepted, key, getattr(self, key), f"one of {accepted}")
        if self.on_device and (self.randaugment or self.color_jitter):
            raise ValueError(
                "data.on_device=True crops and flips on the device and has no operations on colours there: set "
                f"data.randaugment={self.randaugment!r} to '' and data.color_jitter={self.color_jitter} to 0."
            )


def shown(value: Any) -> str:
    """A value as an error message has it, cut where it is long. Python itself refuses to write very long numbers."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"{'-' * (value < 0)}2**{value.bit_length() - 1} or more"
    text = repr(value) if not isinstance(value, (tuple, list)) else f"({', '.join(map(shown, value))})"
    return text if len(text) <= 200 else f"{text[:150]}... ({len(text)} characters)"


def _is_number(value: Any) -> bool:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool)
    return sound and -sys.float_info.max <= value <= sys.float_info.max  # math.isfinite cannot take 10**400


def _check(sound: bool, key: str, value: Any, accepted: str) -> None:
    """Raises ValueError that names the config key, the value and what is accepted, unless `sound`."""
    if not sound:
        raise ValueError(f"data.{key}={shown(value)}: must be {accepted}. Set it by --config.data.{key}=...")
