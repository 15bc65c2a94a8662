"""Typed form of `config.data`: one field per key, with the same name, checked when it is created."""

import dataclasses

from tnt_jax.data import randaugment
from tnt_jax.keys import INT32, Group, key, short_repr

INTERPOLATIONS = ("bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class EvalImages:
    """How an image becomes the network's input without a data set: keys of `config.data` with the same meaning.

    `training.starting_point.published_images` returns those of a model's published weights.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_bits: int = 8
    eval_crop_fraction: float = 0.9
    eval_interpolation: str = "bicubic"
    exif_orientation: bool = True


@dataclasses.dataclass(frozen=True)
class DataSettings(Group):
    """`config.data`: which examples to use, and how their images become [H, W, C] arrays of uint8 or uint16.

    `DataSettings(**config.data)` raises ValueError with the key, the value found and what is accepted.
    There are no defaults here: configs/default.py has the values and units.
    """

    prefix = "data."

    name: str
    directory: str = key(resumable=True)
    train_split: str
    eval_split: str
    pixel_bits: int = key(8, 16, choices=(8, 16), before=8)
    mean: tuple[float, ...] = key(-1e6, 1e6)
    std: tuple[float, ...] = key(1e-6, 1e6)
    repeated_augmentation: int = key(1, INT32)
    crop: str = key(choices=("random_resized", "simple"), before="random_resized")
    crop_area: tuple[float, float] = key(above=0, high=1)
    crop_aspect: tuple[float, float] = key(1e-3, 1e3)
    train_interpolation: str = key(choices=(*INTERPOLATIONS, "random"))
    flip_probability: float = key(0, 1)
    randaugment: str
    three_augment: bool = key(before=False)
    color_jitter: float = key(0, 1)
    eval_crop_fraction: float = key(0.01, 1)
    eval_interpolation: str = key(choices=INTERPOLATIONS)
    exif_orientation: bool = key(resumable=True, before=False)
    worker_processes: int = key(-1, 1024, resumable=True, before=-1)
    on_device: bool = key(before=False)
    synthetic_examples: int = key(1, 10**8)
    max_faulty_images: int = key(0, INT32, resumable=True, before=10)
    allow_faulty_eval: bool = key(resumable=True, before=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std"):
            if not getattr(self, name):
                raise ValueError(f"config.data.{name}=(): must hold one number per channel, or one for all.")
        for name in ("name", "train_split", "eval_split"):
            if not getattr(self, name).strip():
                raise ValueError(f"config.data.{name}={short_repr(getattr(self, name))}: must not be empty.")
        if self.randaugment:
            randaugment.parse(self.randaugment)
        if self.randaugment and self.three_augment:
            raise ValueError(
                f"config.data.three_augment=True and config.data.randaugment={self.randaugment!r} exclude each other: "
                "set data.randaugment to '', or data.three_augment to False."
            )
        if self.on_device and (self.randaugment or self.color_jitter or self.three_augment):
            raise ValueError(
                "config.data.on_device=True crops and flips on the device and has no colour operations there: set "
                f"data.randaugment={self.randaugment!r} to '', data.color_jitter={self.color_jitter} to 0 and "
                "data.three_augment to False."
            )
        if self.on_device and self.crop != "random_resized":
            raise ValueError(
                f"config.data.on_device=True has only random resized crops, not data.crop={self.crop!r}: set one of "
                "the two to its default, False or 'random_resized'."
            )
