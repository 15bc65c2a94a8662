"""The PyTorch models stored in tests/fixtures, as written by make_timm_fixture.py there."""

from pathlib import Path

import numpy as np

import tnt_jax

FOLDER = Path(__file__).parents[1] / "fixtures"

_SMALL = {"image_size": 32, "patch_size": 8, "word_size": 2}
MODELS = {
    "tnt_tiny": (
        "tnt_s_patch16_224",
        {**_SMALL, "outer_dim": 48, "inner_dim": 12, "depth": 3, "inner_num_heads": 2, "outer_num_heads": 3}
        | {"num_classes": 10},
    ),
    "tnt_tiny_qkv_bias": (
        "tnt_s_patch16_224",
        {"image_size": 48, "outer_dim": 64, "inner_dim": 8, "depth": 2, "inner_num_heads": 4, "outer_num_heads": 4}
        | {"num_classes": 7, "qkv_bias": True},
    ),
    "tnt_tiny_legacy": (
        "tnt_s_legacy_patch16_224",
        {**_SMALL, "image_size": (32, 24), "outer_dim": 32, "inner_dim": 8, "depth": 2}
        | {"inner_num_heads": 2, "outer_num_heads": 2, "num_classes": 5},
    ),
    "deit_tiny_depth2": (
        "deit_tiny_patch16_224",
        {"image_size": 32, "patch_size": 8, "outer_dim": 48, "depth": 2, "outer_num_heads": 3, "num_classes": 10},
    ),
    "deit3_tiny_depth1": (
        "deit_tiny_patch16_224",
        {"image_size": 32, "patch_size": 8, "outer_dim": 32, "depth": 1, "outer_num_heads": 2, "num_classes": 5}
        | {"layer_scale": 1e-6},
    ),
    "official_tiny": (
        "tnt_s_patch16_224",
        {**_SMALL, "outer_dim": 32, "inner_dim": 8, "depth": 3, "inner_num_heads": 2, "outer_num_heads": 2}
        | {"num_classes": 5, "tnt_blocks": (1, 3), "squeeze_excitation": True},
    ),
}


def model(name, **overrides):
    """Creates this project's counterpart of a stored model."""
    variant, settings = MODELS[name]
    return tnt_jax.create_model(variant, **{**settings, **overrides})


def weights_file(name):
    """Returns the path of a stored model's weights."""
    return FOLDER / f"{name}.safetensors"


def outputs(name):
    """Returns images and PyTorch's outputs for them."""
    return dict(np.load(FOLDER / f"{name}.npz"))
