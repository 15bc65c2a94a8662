"""Checks of a model's settings, at construction, and of its inputs; the error messages have the fix."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from tnt_jax.models.patches import grid_of

if TYPE_CHECKING:
    from tnt_jax.models.config import Config

_WHOLE_NUMBERS = (
    "in_channels",
    "patch_size",
    "word_size",
    "inner_dim",
    "outer_dim",
    "inner_num_heads",
    "outer_num_heads",
    "depth",
)
CHOICES = {
    "pooling": ("class_token", "mean"),
    "sentence_encoding": ("learned", "sincos"),
    "initialization": ("published", "scaled"),
    "drop_path_schedule": ("linear", "constant"),
}
IMPLEMENTATIONS = ("auto", "reference", "xla", "dot", "broadcast", "cudnn", "pallas")  # of the inner blocks
OUTER_IMPLEMENTATIONS = ("auto", "xla", "flash")  # of the outer attention
REMAT_POLICIES = ("nothing_saveable", "dots_with_no_batch_dims_saveable")  # by their names in jax.checkpoint_policies
FEATURES = ("sentences", "words", "outer_attention", "inner_attention")


def check_model_config(model: "Config") -> None:
    """Checks a model's Config.

    Raises:
      ValueError: sizes that do not fit together; the message has the attribute and the fix.
    """
    for name in _WHOLE_NUMBERS:
        value = getattr(model, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    if not isinstance(model.num_classes, int) or model.num_classes < 0:
        raise ValueError(f"num_classes={model.num_classes!r} must be a whole number, 0 for a model without a head")
    _check_image(model)
    if model.patch_size % model.word_size:
        divisors = [d for d in range(1, model.patch_size + 1) if model.patch_size % d == 0]
        raise ValueError(
            f"word_size={model.word_size} does not divide patch_size={model.patch_size}; use one of {divisors}"
        )
    for dim, heads in (("inner_dim", "inner_num_heads"), ("outer_dim", "outer_num_heads")):
        width, count = getattr(model, dim), getattr(model, heads)
        if width % count:
            raise ValueError(
                f"{dim}={width} is not a multiple of {heads}={count}; each head takes an equal share of it"
            )
    if not 0 < model.mlp_ratio < math.inf or int(model.inner_dim * model.mlp_ratio) < 1:
        raise ValueError(f"mlp_ratio={model.mlp_ratio} must be positive; the paper has 4")
    for name in ("drop_path_rate", "head_dropout"):
        if not 0 <= (rate := getattr(model, name)) < 1:
            raise ValueError(f"{name}={rate} must be at least 0 and below 1; the recipe has drop_path_rate=0.1")
    if not 0 <= model.layer_scale < math.inf:
        raise ValueError(f"layer_scale={model.layer_scale} must be the initial factor, such as 1e-5, or 0 for none")
    for name, choices in CHOICES.items():
        if (value := getattr(model, name)) not in choices:
            raise ValueError(f"{name}={value!r} must be {' or '.join(map(repr, choices))}")
    if model.sentence_encoding == "sincos" and (not model.sentence_position or model.outer_dim % 4):
        raise ValueError(
            "sentence_encoding='sincos' needs sentence_position=True and outer_dim a multiple of 4, got "
            f"sentence_position={model.sentence_position} and outer_dim={model.outer_dim}"
        )
    if model.norm_epsilon <= 0:
        raise ValueError(f"norm_epsilon={model.norm_epsilon} must be positive; TNT has 1e-5, DeiT 1e-6")
    _check_blocks(model)
    if not jnp.issubdtype(jnp.dtype(model.dtype), jnp.floating):
        raise ValueError(f"dtype={model.dtype!r} is not a floating type; use float32 or bfloat16")


def _check_image(model: "Config") -> None:
    """Checks that image_size is a side or (H, W), each a multiple of the patch size."""
    size = model.image_size
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"image_size={size!r} must be a number of pixels or a pair (height, width)")
    grid_of(tuple(sides), model.patch_size)


def _check_blocks(model: "Config") -> None:
    """Checks that tnt_blocks are distinct 1-based indices of existing blocks."""
    if model.tnt_blocks is None:
        return
    if not isinstance(model.tnt_blocks, Sequence):
        raise ValueError(f"tnt_blocks={model.tnt_blocks!r} must be a tuple of block numbers, such as (1,)")
    wrong = [i for i in model.tnt_blocks if not isinstance(i, int) or not 1 <= i <= model.depth]
    if wrong or len(set(model.tnt_blocks)) != len(model.tnt_blocks):
        raise ValueError(
            f"tnt_blocks={tuple(model.tnt_blocks)} must be different block numbers from 1 to depth={model.depth}; "
            "() is DeiT, None is TNT in every block"
        )


def check_features(asked: bool | Sequence[str]) -> tuple[str, ...]:
    """return_features as given -> the requested names.

    Raises:
      ValueError: an unknown name.
    """
    if isinstance(asked, bool):
        return ("sentences", "words") if asked else ()
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    unknown = [name for name in names if name not in FEATURES]
    if unknown:
        raise ValueError(f"return_features has {unknown}; the names are {', '.join(FEATURES)}")
    return names


def check_images(images: jax.Array, config: "Config") -> None:
    """Checks a model's input.

    Raises:
      ValueError: not an array, not [B, H, W, in_channels] (with a guess at its layout), not of a floating type, or a
        side that is not a multiple of the patch size.
    """
    channels = config.in_channels
    if not hasattr(images, "shape") or not hasattr(images, "dtype"):
        raise ValueError(f"images must be an array [B, H, W, {channels}], got a {type(images).__name__}")
    shape = images.shape
    if len(shape) == 4 and shape[-1] == channels and shape[0] != 0:
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images must be floating-point numbers, got {images.dtype}; convert pixels by "
                "(pixels / 255 - mean) / std, with the mean and std of the training"
            )
        grid_of(shape[1:3], config.patch_size)
        return
    hint = ""
    if len(shape) == 3 and shape[-1] == channels:
        hint = "; add a batch axis: images[None]"
    elif len(shape) == 4 and shape[1] == channels:
        hint = "; channels come last: images.transpose(0, 2, 3, 1)"
    elif len(shape) == 4:
        hint = f"; for a model of {shape[-1]} channels: create_model(..., in_channels={shape[-1]})"
        if (shape[-1], channels) == (1, 3):
            hint += ", or make grey images three channels: images.repeat(3, axis=-1)"
        elif (shape[-1], channels) == (4, 3):
            hint += ", or leave transparency out: images[..., :3]"
    raise ValueError(f"images must be [B, H, W, {channels}], got {list(shape)}{hint}")
