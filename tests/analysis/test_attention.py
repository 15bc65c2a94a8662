import matplotlib.image
import numpy as np

from tests.models.helpers import images, random_variables, run, small_model
from tnt_jax.analysis.attention import class_token_attention, draw_class_token_attention
from tnt_jax.analysis.panels import enlarge
from tnt_jax.data.settings import EvalImages


def test_maps_are_the_last_blocks_class_row():
    model = small_model()
    variables = random_variables(model)
    logits, maps = class_token_attention(model, variables, images())
    expected, features = run(model, variables, images(), return_features=("outer_attention",))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    row = features["outer_attention"][-1].mean(1)[:, 0]
    np.testing.assert_allclose(maps.reshape(2, -1), row[:, 1:], atol=1e-6)
    np.testing.assert_allclose(maps.sum((1, 2)) + row[:, 0], 1, atol=1e-5)


def test_a_bright_patch_changes_the_map_at_its_place():
    model = small_model(depth=1, outer_num_heads=1)
    variables = random_variables(model)
    dark = images(1)
    before = class_token_attention(model, variables, dark)[1][0]
    for row, column in ((0, 3), (2, 1)):
        bright = dark.at[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].set(2.0)
        # The other sentences keep their scores in the first block: with one head, their weights change by one factor.
        ratio = class_token_attention(model, variables, bright)[1][0] / before
        off = np.abs(ratio / np.median(ratio) - 1) > 1e-3
        assert [tuple(place) for place in np.argwhere(off)] == [(row, column)]


def test_enlarged_maps_keep_their_peak_and_run_from_0_to_1():
    maps = np.zeros((1, 4, 4), np.float32)
    maps[0, 1, 2] = 0.3
    heat = enlarge(maps, 16, 16)[0]
    assert heat.min() == 0 and heat.max() == 1
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert (row // 4, column // 4) == (1, 2)
    assert np.isfinite(enlarge(np.ones((1, 2, 2)), 8, 8)).all()


def test_the_figure_holds_every_image(tmp_path):
    model = small_model()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    path = draw_class_token_attention(
        model,
        random_variables(model),
        pixels,
        [0, 1, 2],
        tmp_path / "attention.png",
        preprocessing=EvalImages((0.5,) * 3, (0.5,) * 3),
        class_names=[r"$\frac{1$", "a\nb$", "\x1b[31m"] * 4,
    )
    figure = matplotlib.image.imread(path)
    assert figure.shape[1] > figure.shape[0] and figure[..., :3].std() > 0.1
