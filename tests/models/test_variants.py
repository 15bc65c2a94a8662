import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnt_jax
from tnt_jax.models.variants import VARIANTS

# Trainable parameters at 224 x 224 with 1,000 classes; timm counts the same for the models it has.
PARAMETERS = {
    "tnt_ti_patch16_224": 6_076_408,
    "tnt_s_patch16_224": 23_768_584,
    "tnt_b_patch16_224": 65_428_680,
    "tnt_s_legacy_patch16_224": 23_755_336,
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
}


def test_no_variant_is_without_a_count():
    assert set(VARIANTS) == set(PARAMETERS)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_counts(name):
    model = tnt_jax.create_model(name)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": 225}, "image_size=225 is not a multiple of patch_size=16; use 224 or 240"),
        ({"word_size": 5}, r"word_size=5 does not divide patch_size=16; use one of \[1, 2, 4, 8, 16\]"),
        ({"inner_num_heads": 5}, "inner_dim=24 is not a multiple of inner_num_heads=5"),
        ({"outer_dim": 100}, "outer_dim=100 is not a multiple of outer_num_heads=6"),
        ({"depth": 0}, "depth=0 must be a whole number"),
        ({"tnt_blocks": (0, 1)}, r"tnt_blocks=\(0, 1\) must be different block numbers from 1 to depth=12"),
        ({"tnt_blocks": (1, 13)}, "tnt_blocks"),
        ({"tnt_blocks": (1, 1)}, "tnt_blocks"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 must be at least 0 and below 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"head_dropout": 1.0}, "head_dropout=1.0 must be at least 0 and below 1"),
        ({"layer_scale": -1e-5}, "layer_scale=-1e-05 must be the initial factor"),
        ({"pooling": "avg"}, "pooling='avg' must be 'class_token' or 'mean'"),
        ({"initialization": "lecun"}, "initialization='lecun' must be 'published' or 'scaled'"),
        ({"sentence_encoding": "rope"}, "sentence_encoding='rope' must be 'learned' or 'sincos'"),
        ({"sentence_encoding": "sincos", "sentence_position": False}, "needs sentence_position=True"),
        ({"sentence_encoding": "sincos", "outer_dim": 6}, "outer_dim a multiple of 4, got .*outer_dim=6"),
        ({"norm_epsilon": 0.0}, "norm_epsilon"),
        ({"num_classes": -1}, "num_classes"),
        ({"image_size": (224,)}, "image_size"),
        (
            {"inner_implementation": "flash"},
            "inner_implementation='flash' is not known; use one of auto, reference, xla",
        ),
        ({"inner_implementation": "pallas", "device_kind": "cpu"}, "the kernel is for TPUs, and the device is cpu"),
        ({"inner_implementation": "pallas", "device_kind": "TPU v4"}, "vector memory of a TPU v5e"),
        ({"inner_implementation": "pallas", "device_kind": "TPU v5 lite", "word_size": 1}, "needs .* MiB"),
        ({"inner_implementation": "pallas", "device_kind": "TPU v5p", "dtype": "float16"}, "bfloat16 or float32"),
        ({"remat_policy": "everything"}, "remat_policy='everything' is not known; use nothing_saveable or dots_with"),
        ({"dtype": "float33"}, "dtype='float33' is not a type"),
        ({"dtype": "int32"}, "not a floating type"),
        ({"inner_dimm": 24}, "did you mean 'inner_dim'"),
    ],
)
def test_impossible_settings_stop_at_construction_with_the_fix(overrides, message):
    with pytest.raises(ValueError, match=message):
        tnt_jax.create_model("tnt_s_patch16_224", **overrides)


def test_a_misspelt_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean 'tnt_s_patch16_224'"):
        tnt_jax.create_model("tnt_s_patch16_244")
