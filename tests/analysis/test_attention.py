import matplotlib.image
import numpy as np

from tests.models.helpers import random_variables, small_model
from tnt_jax.analysis.attention import draw_class_token_attention
from tnt_jax.analysis.panels import enlarge
from tnt_jax.data.settings import EvalImages


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
