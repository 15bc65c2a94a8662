import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tnt_jax
from tnt_jax.models import complexity, tnt
from tnt_jax.models.variants import update

SMALL = {"image_size": 16, "patch_size": 4, "word_size": 2, "inner_dim": 6, "outer_dim": 24, "depth": 3}
SMALL |= {"inner_num_heads": 2, "outer_num_heads": 3, "num_classes": 5}
COUNTS = {
    "tnt_ti_patch16_224": 6_076_408,
    "tnt_s_patch16_224": 23_768_584,
    "tnt_b_patch16_224": 65_428_680,
    "deit_small_patch16_224": 22_050_664,
}


def small_model(**overrides):
    """Returns a TNT with 16 sentences of 4 words."""
    return tnt_jax.create_model("tnt_s_patch16_224", **SMALL | overrides)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_of_the_published_sizes(name):
    assert complexity.count_parameters(tnt_jax.create_model(name)) == COUNTS[name]


@pytest.mark.parametrize(
    "name, tokens, published", [("tnt_s_patch16_224", 75_264, 23.8), ("tnt_b_patch16_224", 125_440, 65.6)]
)
def test_frozen_outer_tokens_explain_the_published_count(name, tokens, published):
    model = tnt_jax.create_model(name)
    assert complexity.frozen_outer_tokens(model) == tokens
    assert round((COUNTS[name] + tokens) / 1e6, 1) == published


def test_tnt_s_block_over_a_standard_block():
    """Section 3.3: 376 M against 429 M multiply-adds, a ratio of 1.14; for parameters the paper cuts 1.087 to 1.08."""
    standard, tnt = complexity.standard_block(196, 384), complexity.tnt_block(196, 384, 16, 24)
    assert round(standard.multiply_adds / 1e6) == 376 and round(tnt.multiply_adds / 1e6) == 429
    ratio = complexity.inner_path_ratio(tnt_jax.create_model("tnt_s_patch16_224"))
    assert ratio.multiply_adds == tnt.multiply_adds / standard.multiply_adds
    assert round(ratio.multiply_adds, 2) == 1.14 and 1.08 <= ratio.parameters < 1.09


@given(st.integers(1, 300), st.integers(1, 800), st.integers(1, 64), st.integers(1, 96))
def test_formulas_are_the_papers(n, d, m, c):
    standard, tnt = complexity.standard_block(n, d), complexity.tnt_block(n, d, m, c)
    assert standard.multiply_adds == 2 * n * d * (6 * d + n)
    assert standard.parameters == 12 * d * d
    assert tnt.multiply_adds == 2 * n * m * c * (6 * c + m) + n * m * c * d + 2 * n * d * (6 * d + n)
    assert tnt.parameters == 12 * c * c + m * c * d + 12 * d * d


OVERRIDES = [
    {},
    {"tnt_blocks": (2,)},
    {"tnt_blocks": ()},
    {"squeeze_excitation": True},
    {"legacy": True},
    {"qkv_bias": True, "mlp_ratio": 3.0, "num_classes": 0},
    {"word_position": False, "sentence_position": False, "image_size": (8, 20)},
]


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_parts_hold_every_parameter_once(overrides):
    model = small_model(**overrides)
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *model.input_size, 3), np.float32))
    total = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables))
    parts = complexity.count_parts(model)
    assert sum(part.parameters for part in parts) == complexity.count_parameters(model) == total
    assert all(part.parameters > 0 for part in parts)


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_products_are_those_of_the_layers_written_out(overrides):
    model = small_model(**overrides)
    n, m, c, d = model.grid[0] * model.grid[1], model.num_words, model.inner_dim, model.outer_dim
    r, inner, depth, tokens = int(model.mlp_ratio), len(model.inner_blocks), model.depth, 1 + n
    expected = {
        "outer/attention": depth * tokens * (4 * d * d + 2 * tokens * d + d + 3 * model.qkv_bias * d),
        "outer/mlp": depth * tokens * (2 * r * d * d + r * d + d),
    }
    if model.num_classes:
        expected["head"] = (d + 1) * model.num_classes
    if inner:
        expected |= {
            "word_embedding": n * m * (7 * 7 * 3 + 1) * c,
            "sentence_embedding": n * (m * c + 1) * d,
            "inner/attention": inner * n * m * (4 * c * c + 2 * m * c + c + 3 * model.qkv_bias * c),
            "inner/mlp": inner * n * m * (2 * r * c * c + r * c + c),
            "projection": inner * n * (m * c + model.legacy) * d,
        }
    else:
        expected["patch_embedding"] = n * (4 * 4 * 3 + 1) * d
    if model.squeeze_excitation:
        expected["outer/squeeze_excitation"] = depth * (2 * d * (d // 4) + d // 4 + d)
    assert {part.name: part.multiply_adds for part in complexity.count_parts(model) if part.multiply_adds} == expected


def test_a_module_that_nobody_knows_counts_too(monkeypatch):
    class Gate(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("scale", nn.initializers.ones, ()) + nn.Dense(x.shape[-1], name="mixing")(x)

    class Block(tnt.OuterBlock):
        @nn.compact
        def __call__(self, sentences, drop, return_weights=False):
            sentences, weights = published.__call__(self, sentences, drop, return_weights)
            return Gate(name="gate")(sentences), weights

    published, before = tnt.OuterBlock, complexity.multiply_adds(small_model())
    monkeypatch.setattr(tnt, "OuterBlock", Block)
    parts = {part.name: part for part in complexity.count_parts(small_model())}
    assert parts["outer/gate"].multiply_adds == 3 * 17 * (24 * 24 + 24)
    assert complexity.multiply_adds(small_model()) == before + 3 * 17 * (24 * 24 + 24)
    assert sum(part.parameters for part in parts.values()) == complexity.count_parameters(small_model())


def test_formula_of_a_model_adds_up_its_blocks():
    mixed, n, d = small_model(tnt_blocks=(2,)), 16, SMALL["outer_dim"]
    standard, tnt = complexity.standard_block(n, d), complexity.tnt_block(n, d, 4, SMALL["inner_dim"])
    found = complexity.by_formula(mixed)
    assert found.multiply_adds == 2 * standard.multiply_adds + tnt.multiply_adds
    assert found.parameters == 2 * standard.parameters + tnt.parameters


@pytest.mark.parametrize("overrides", [{}, {"tnt_blocks": (2,)}, {"tnt_blocks": (), "mlp_ratio": 3.0}])
def test_formulas_are_of_parts_that_the_model_has(overrides):
    model = small_model(**overrides)
    formulas, parts = complexity.formula_parts(model), {part.name: part for part in complexity.count_parts(model)}
    assert all(name in parts for name in formulas)
    if model.inner_blocks:  # the one part without biases, class token or attention
        exact = parts["projection"]
        assert formulas["projection"].multiply_adds == exact.multiply_adds


def test_multiply_adds_of_tnt_s():
    """5.2 G at 224 pixels (Table 1), 17.3 G at 384 pixels (timm's results table, products only)."""
    model = tnt_jax.create_model("tnt_s_patch16_224")
    assert round(complexity.multiply_adds(model) / 1e9, 1) == 5.2
    assert round(complexity.multiply_adds(update(model, image_size=384)) / 1e9, 1) == 17.3
