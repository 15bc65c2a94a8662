"""Anything but images [B, H, W, 3] is refused with what was passed and, where it is clear, the fix."""

import jax
import jax.numpy as jnp
import pytest

from tests.models.helpers import small_model
from tnt_jax.models.checks import check_images


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 3, 224, 224), r"got \[2, 3, 224, 224\]; channels come last: images.transpose\(0, 2, 3, 1\)"),
        ((224, 224, 3), r"got \[224, 224, 3\]; add a batch axis: images\[None\]"),
        ((2, 224, 224, 1), r"got \[2, 224, 224, 1\]; .*in_channels=1\), or make grey images .*repeat\(3, axis=-1\)"),
        (
            (2, 224, 224, 4),
            r"got \[2, 224, 224, 4\]; .*in_channels=4\), or leave transparency out: images\[\.\.\., :3\]",
        ),
        ((2, 1, 28, 28), r"got \[2, 1, 28, 28\]"),
        ((224, 224), r"got \[224, 224\]"),
        ((1, 2, 224, 224, 3), r"got \[1, 2, 224, 224, 3\]"),
        ((), r"got \[\]"),
        ((0, 16, 16, 3), r"got \[0, 16, 16, 3\]"),
    ],
)
def test_other_shapes_than_images(shape, words):
    model = small_model()
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\], " + words):
        check_images(jax.ShapeDtypeStruct(shape, jnp.float32), model)
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\], " + words):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


def test_another_number_of_channels_is_the_models():
    model = small_model(in_channels=5)
    check_images(jax.ShapeDtypeStruct((2, 16, 16, 5), jnp.float32), model)
    with pytest.raises(ValueError, match=r"must be \[B, H, W, 5\], got \[2, 16, 16, 3\]; .*in_channels=3\)$"):
        check_images(jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32), model)
    with pytest.raises(ValueError, match="in_channels=0 must be a whole number"):
        small_model(in_channels=0)


def test_images_of_any_number_are_taken():
    for batch in (1, 7):
        check_images(jax.ShapeDtypeStruct((batch, 16, 16, 3), jnp.bfloat16), small_model())


@pytest.mark.parametrize("kind", ["uint8", "int32", "bool", "complex64"])
def test_pixels_that_are_not_normalised_are_refused(kind):
    with pytest.raises(ValueError, match=rf"floating-point numbers, got {kind}; .*\(pixels / 255 - mean\) / std"):
        check_images(jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.dtype(kind)), small_model())


@pytest.mark.parametrize("images", [None, [[[[0.0] * 3]]], {"image": 1}])
def test_what_is_no_array_is_refused(images):
    with pytest.raises(ValueError, match=rf"must be an array \[B, H, W, 3\], got a {type(images).__name__}"):
        check_images(images, small_model())


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"mlp_ratio": float("inf")}, "mlp_ratio=inf must be"), ({"mlp_ratio": float("nan")}, "mlp_ratio=nan must be")]
    + [({"tnt_blocks": 1}, r"tnt_blocks=1 must be a tuple of block numbers, such as \(1,\)")],
)
def test_settings_of_another_kind_are_named(setting, words):
    with pytest.raises(ValueError, match=words):
        small_model(**setting)
