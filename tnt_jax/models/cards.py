"""Cards of the named models: sizes, counts, the images they expect, and the accuracy of their published weights."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from tnt_jax.models.variants import VARIANTS, create_model, nearest


class Accuracy(NamedTuple):
    """Accuracy in % on one data set."""

    top1: float
    top5: float


# Data sets by tfds name, in the order of the rows below -> the file of timm's results.
RESULTS = {
    "imagenet2012": "results-imagenet",
    "imagenet2012_real": "results-imagenet-real",
    "imagenet_v2/matched-frequency": "results-imagenetv2-matched-frequency",
    "imagenet_a": "results-imagenet-a",
    "imagenet_r": "results-imagenet-r",
    "imagenet_sketch": "results-sketch",
}
SOURCE = "https://github.com/huggingface/pytorch-image-models, results/ at 4e5207c7 (30 October 2025)"
# Name of the weights on the hub, and (top-1, top-5) on each of RESULTS. TNT-Ti has no published weights.
_PUBLISHED: dict[str, tuple[str, tuple[tuple[float, float], ...]]] = {
    "tnt_s_patch16_224": (
        "timm/tnt_s_patch16_224.in1k",
        ((81.506, 95.766), (86.763, 97.32), (70.17, 89.51), (24.627, 57.6), (42.697, 58.147), (30.191, 48.91)),
    ),
    "tnt_b_patch16_224": (
        "timm/tnt_b_patch16_224.in1k",
        ((82.864, 96.23), (87.585, 97.481), (72.37, 90.59), (32.2, 65.24), (46.93, 62.36), (33.713, 53.104)),
    ),
    "tnt_s_legacy_patch16_224": (
        "timm/tnt_s_legacy_patch16_224.in1k",
        ((81.512, 95.742), (86.908, 97.365), (70.86, 89.51), (24.573, 57.933), (43.767, 59.24), (31.663, 51.17)),
    ),
    "deit_tiny_patch16_224": (
        "timm/deit_tiny_patch16_224.fb_in1k",
        ((72.19, 91.1), (80.026, 94.464), (59.92, 82.75), (7.213, 30.627), (32.713, 50.327), (20.14, 37.574)),
    ),
    "deit_small_patch16_224": (
        "timm/deit_small_patch16_224.fb_in1k",
        ((79.856, 95.056), (85.672, 96.913), (68.53, 88.17), (18.72, 51.093), (42.27, 58.007), (29.435, 48.268)),
    ),
    "deit_base_patch16_224": (
        "timm/deit_base_patch16_224.fb_in1k",
        ((81.98, 95.74), (86.833, 97.062), (70.97, 89.18), (27.173, 58.64), (44.913, 59.183), (32.39, 50.986)),
    ),
}
# Trainable parameters and multiply-adds per 224 x 224 image, with 1,000 classes. Stored here because counting them
# (models/complexity.py) takes seconds.
_COUNTS = {
    "tnt_ti_patch16_224": (6_076_408, 1_409_231_080),
    "tnt_s_patch16_224": (23_768_584, 5_227_892_200),
    "tnt_b_patch16_224": (65_428_680, 14_067_444_200),
    "tnt_s_legacy_patch16_224": (23_755_336, 5_228_795_368),
    "deit_tiny_patch16_224": (5_717_416, 1_257_806_824),
    "deit_small_patch16_224": (22_050_664, 4_607_128_552),
    "deit_base_patch16_224": (86_567_656, 17_580_319_720),
}
_TNT_IMAGES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_DEIT_IMAGES = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # ImageNet's


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A model card. mean, std, eval_crop_fraction and eval_interpolation are as in config.data.

    These four are from timm's pretrained_cfg of the published weights; without published weights, from TNT's recipe.
    """

    name: str
    image_size: tuple[int, int]  # pixels
    patch_size: int
    word_size: int | None  # this and the next two are None if the model has no words
    inner_dim: int | None
    inner_num_heads: int | None
    outer_dim: int
    outer_num_heads: int
    depth: int
    parameters: int  # trainable, with 1,000 classes
    multiply_adds: int  # per image, with 1,000 classes
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    eval_crop_fraction: float
    eval_interpolation: str
    hub_name: str | None  # for hf-hub:NAME; None: no published weights
    accuracy: Mapping[str, Accuracy]  # of the published weights, by tfds name; empty if there are none
    source: str | None  # of the accuracy


def list_models() -> list[str]:
    """Returns the names that create_model and model_info accept."""
    return list(VARIANTS)


def model_info(name: str) -> ModelInfo:
    """Returns the card of a model. Raises ValueError, with the nearest name, if list_models() lacks the name."""
    if name not in VARIANTS:
        raise ValueError(f"there is no model {name!r}; {nearest(name, list_models())}")
    model = create_model(name)
    words = bool(model.inner_blocks)
    hub_name, figures = _PUBLISHED.get(name, (None, ()))
    parameters, multiply_adds = _COUNTS[name]
    return ModelInfo(
        name=name,
        image_size=model.input_size,
        patch_size=model.patch_size,
        word_size=model.word_size if words else None,
        inner_dim=model.inner_dim if words else None,
        inner_num_heads=model.inner_num_heads if words else None,
        outer_dim=model.outer_dim,
        outer_num_heads=model.outer_num_heads,
        depth=model.depth,
        parameters=parameters,
        multiply_adds=multiply_adds,
        **(_TNT_IMAGES if words else _DEIT_IMAGES),
        eval_crop_fraction=0.9,
        eval_interpolation="bicubic",
        hub_name=hub_name,
        accuracy=dict(zip(RESULTS, (Accuracy(*each) for each in figures), strict=bool(figures))),
        source=SOURCE if figures else None,
    )
