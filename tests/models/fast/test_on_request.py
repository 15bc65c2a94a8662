"""Whole models with attention maps on request, and in bfloat16."""

import jax
import jax.numpy as jnp
import pytest

from tests.models.fast.test_implementations import MODELS
from tests.models.helpers import images, random_variables, small_model
from tnt_jax.models.fast import Backend


def test_attention_asked_of_the_kernel_comes_from_another_form_and_the_words_with_it():
    model = small_model(**MODELS["TNT"] | {"depth": 1})
    variables = random_variables(model)
    names = ("inner_attention", "words", "outer_attention")
    pair = [
        model.clone(ops=backend).apply(variables, images(), return_features=names)
        for backend in (Backend(device_kind="interpreter"), Backend("reference"))
    ]
    for ours, right in zip(*map(jax.tree.leaves, pair), strict=True):
        assert ours.shape == right.shape and float(jnp.abs(ours - right).max()) < 2e-5


@pytest.mark.parametrize("device", ["cpu", "TPU v4"])
def test_implementations_in_bfloat16_are_the_definition_to_its_rounding(device):
    model = small_model(dtype="bfloat16", depth=1)
    variables = random_variables(model)
    exact = small_model(depth=1, inner_implementation="reference")

    def gradient(model):
        return jax.jit(jax.grad(lambda values: (model.apply(values, images()) * jnp.arange(5)).sum()))(variables)

    for ours, right in zip(
        *map(jax.tree.leaves, (gradient(model.clone(ops=Backend(device_kind=device))), gradient(exact))), strict=True
    ):
        assert float(jnp.sqrt(((ours - right) ** 2).mean())) < 0.05 * float(jnp.sqrt((right**2).mean())) + 1e-3
