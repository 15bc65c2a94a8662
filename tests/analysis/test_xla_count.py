import pytest

from tests.models.helpers import small_model
from tnt_jax.analysis.xla_count import REST, xla_multiply_adds, xla_parts
from tnt_jax.models.complexity import count_parts, multiply_adds

# Wide enough for the products to outweigh the rest, as in every published size.
WIDE = {"image_size": 32, "patch_size": 8, "word_size": 4, "outer_dim": 96, "inner_dim": 24, "inner_num_heads": 4}


@pytest.mark.parametrize("settings", [{}, {"scan": True}, {"tnt_blocks": ()}])
def test_the_whole_is_within_three_percent(settings):
    model = small_model(**WIDE | settings)
    assert xla_multiply_adds(model) == pytest.approx(multiply_adds(model), rel=0.03)


@pytest.mark.parametrize("settings", [{}, {"tnt_blocks": (2,), "depth": 3, "squeeze_excitation": True}])
def test_parts_are_those_of_the_exact_count(settings):
    """The same parts, each near its exact count, and nothing of weight between them."""
    model = small_model(**WIDE | settings)
    counted, parts = xla_parts(model), count_parts(model)
    positions = "class token, positions"
    assert set(counted) == {part.name for part in parts} - {positions} | {REST}
    assert sum(counted.values()) == pytest.approx(xla_multiply_adds(model), rel=1e-6)
    for part in parts:
        if part.name == "word embedding":  # the 7 x 7 convolution runs as a product over 8 x 8 pixels
            assert counted[part.name] == pytest.approx(part.multiply_adds * 64 / 49, rel=0.03)
        elif part.name not in (positions, "final norm", "squeeze and excitation"):
            assert counted[part.name] == pytest.approx(part.multiply_adds, rel=0.09), part
    assert 0 <= counted[REST] < 0.02 * multiply_adds(model)
