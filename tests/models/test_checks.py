"""What is no batch of images [B, H, W, 3] is refused with what it got and, where it can be seen, what to do."""

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
        ((2, 224, 224, 1), r"got \[2, 224, 224, 1\]; grey images .*repeat\(3, axis=-1\)"),
        ((2, 224, 224, 4), r"got \[2, 224, 224, 4\]; transparency is left out: images\[\.\.\., :3\]"),
        ((2, 1, 28, 28), r"got \[2, 1, 28, 28\]"),
        ((224, 224), r"got \[224, 224\]"),
        ((1, 2, 224, 224, 3), r"got \[1, 2, 224, 224, 3\]"),
        ((), r"got \[\]"),
    ],
)
def test_other_shapes_than_images(shape, words):
    model = small_model()
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\], " + words):
        check_images(shape, model)
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\], " + words):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


def test_images_of_any_number_are_taken():
    for batch in (1, 7):
        check_images((batch, 16, 16, 3), small_model())
