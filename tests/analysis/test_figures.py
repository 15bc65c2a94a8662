"""The six figures of two small models: the same bytes each time, saved arrays as drawn, clear errors."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_info, threadpool_limits

from tests.models.helpers import random_variables, small_model
from tnt_jax.analysis import figures, maps, style
from tnt_jax.analysis.panels import chosen_blocks, put_title, save_figure, visible
from tnt_jax.analysis.subject import Subject, centre_crop, map_size, read_image
from tnt_jax.data.settings import EvalImages
from tnt_jax.models.variants import create_model

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def subjects():
    """Returns a DeiT and a TNT of one block each, to be quick."""
    deit, tnt = small_model(depth=1, tnt_blocks=(), qkv_bias=True), small_model(depth=1)
    one, other = EvalImages((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), EvalImages((0.5,) * 3, (0.5,) * 3)
    return [Subject("DeiT-X", deit, random_variables(deit), one), Subject("TNT-X", tnt, random_variables(tnt), other)]


def drawn(name, **options):
    found = subjects()
    return figures.FIGURES[name](found[1:] if name in figures.INNER_FIGURES else found, PIXELS, **options)


def digests(folder):
    """Writes all six figures into the folder -> a digest of each file."""
    for name in figures.FIGURES:
        options = {"image_size": (24, 24)} if name in figures.MAP_FIGURES else {}
        with mock.patch.object(style, "DPI", 60):
            save_figure(drawn(name, **options), folder, name)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    return folder, digests(folder)


def test_every_figure_is_a_png_a_pdf_and_its_arrays(written):
    folder, found = written
    assert set(found) == {f"{name}.{ending}" for name in figures.FIGURES for ending in ("png", "pdf", "npz")}
    for name in figures.FIGURES:
        assert matplotlib.image.imread(folder / f"{name}.png")[..., :3].std() > 0.05  # not blank
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        owners = {key.split("_x_")[0] for key in np.load(folder / f"{name}.npz")}
        assert owners == ({"tnt"} if name in figures.INNER_FIGURES else {"deit", "tnt"})


def test_another_process_writes_the_same_bytes(written, tmp_path):
    """Uses another hash seed, so that a stored date or the order of a set would change the bytes."""
    program = f"""
import json, pathlib
import tests.conftest
from tests.analysis.test_figures import digests
print(json.dumps(digests(pathlib.Path({str(tmp_path)!r}))))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == written[1]


def test_feature_maps_are_channels_drawn_by_the_seed(written):
    deit, tnt = subjects()
    arrays = np.load(written[0] / "feature_maps.npz")
    picks = arrays["tnt_x_channels"]
    assert len(set(picks.tolist())) == 12 and picks.max() < 24 and arrays["tnt_x_blocks"].tolist() == [1]
    expected = maps.sentence_maps(deit.model, deit.variables, deit.inputs(centre_crop(PIXELS, (24, 24))), (1,))
    np.testing.assert_array_equal(arrays["deit_x_maps"], expected[:, arrays["deit_x_channels"]])
    assert figures.pick_channels(384, 0).tolist() == figures.pick_channels(384, 0).tolist()
    assert figures.pick_channels(384, 0).tolist() != figures.pick_channels(384, 1).tolist()


def test_the_tsne_has_one_thread_whatever_the_machine_has(monkeypatch):
    """With two threads, another order of sums moved points of a real model by more than half the figure."""
    used, fit_transform = [], TSNE.fit_transform

    def spied(self, vectors):
        used.extend(pool["num_threads"] for pool in threadpool_info())
        return fit_transform(self, vectors)

    monkeypatch.setattr(TSNE, "fit_transform", spied)
    with threadpool_limits(2):
        drawn("tsne", image_size=(24, 24))
    assert set(used) == {1}


def test_points_of_the_tsne_are_one_a_channel(written):
    arrays = np.load(written[0] / "tsne.npz")
    assert arrays["tnt_x_points"].shape == (24, 2) and 0 < arrays["tnt_x_correlation"] < 1


def test_attention_that_is_saved_sums_to_one(written):
    for name, shape in (
        ("inner_attention", (4, 1, 2, 4)),
        ("outer_attention", (1, 17, 17)),
        ("class_attention", (3, 17)),
    ):
        attention = np.load(written[0] / f"{name}.npz")["tnt_x_attention"]
        assert attention.shape == shape
        np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-5)
    arrays = np.load(written[0] / "class_attention.npz")
    np.testing.assert_array_equal(arrays["deit_x_maps"].reshape(3, 16), arrays["deit_x_attention"][:, 1:])


def test_correlation_of_like_and_unlike_maps():
    same = np.outer([1.0, -2.0, 3.0], np.arange(5)) + 7
    assert figures.mean_correlation(same) == pytest.approx(1)
    assert figures.mean_correlation(np.array([[1.0, -1, 0, 0], [0, 0, 1, -1]])) == pytest.approx(0)
    assert figures.mean_correlation(np.ones((2, 3))) == 0


@pytest.mark.parametrize("depth, blocks", [(12, (1, 6, 12)), (4, (1, 2, 4)), (2, (1, 2)), (1, (1,))])
def test_blocks_are_the_first_the_middle_and_the_last(depth, blocks):
    assert chosen_blocks(depth) == blocks


@pytest.mark.parametrize("name", figures.INNER_FIGURES)
def test_words_of_a_model_without_words_are_refused(name):
    with pytest.raises(ValueError, match="DeiT-X has no inner path"):
        figures.FIGURES[name](subjects(), PIXELS)
    with pytest.raises(ValueError, match="no model has no inner path"):
        figures.FIGURES[name]([], PIXELS)


def test_an_image_is_cut_to_its_centre():
    assert centre_crop(PIXELS, (20, 20)).tolist() == PIXELS[:, 5:25].tolist()
    assert centre_crop(PIXELS, (20, 30)).tolist() == PIXELS.tolist()
    assert centre_crop(PIXELS, (7, 31)).shape == (7, 31, 3)


@pytest.mark.parametrize("size, larger", [(224, 1024), (384, 1024), (1280, 1280), ((112, 224), (512, 1024))])
def test_feature_maps_of_the_papers_size(size, larger):
    expected = (larger, larger) if isinstance(larger, int) else larger
    assert map_size(create_model("tnt_s_patch16_224", image_size=size)) == expected


def test_feature_maps_of_small_models_are_as_much_larger():
    assert map_size(small_model(image_size=16)) == (72, 72)  # 16 x 1024 / 224 is 73.1


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_image_of_any_channels_is_shown_and_fitted(channels, dtype):
    """Four show their first three; one, two and five show their mean, grey. Of 16 bits the upper eight are shown."""
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (6, 9, channels)).astype(dtype)
    shown, upper = visible(pixels), (pixels >> (8 * (dtype == np.uint16))).astype(np.uint8)
    assert shown.shape == (6, 9, 3) and shown.dtype == np.uint8
    expected = upper[..., :3] if channels == 4 else upper.mean(-1, keepdims=True).round()
    np.testing.assert_array_equal(shown, np.broadcast_to(expected, shown.shape))
    np.testing.assert_array_equal(centre_crop(pixels[:, 1:], (6, 6)), pixels[:, 2:8])
    assert centre_crop(pixels, (3, 4)).dtype == dtype


def test_images_are_read_upright_and_what_is_none_is_an_error(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == PIXELS.tolist()
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera was held sideways
    Image.fromarray(PIXELS).save(tmp_path / "b.jpg", exif=rotated)
    assert read_image(tmp_path / "b.jpg").shape == (30, 20, 3)
    (tmp_path / "c.png").write_text("no image")
    with pytest.raises(ValueError, match="c.png cannot be read as an image"):
        read_image(tmp_path / "c.png")
    with pytest.raises(FileNotFoundError, match="d.png: there is no such file"):
        read_image(tmp_path / "d.png")


def test_a_title_is_no_formula():
    """The title may name a workdir with such a name, and may wrap onto several lines."""
    figure = plt.figure(figsize=(2, 2))
    put_title(figure, "TNT ($x_{1$ \x1b[31m " + "$" * 60 + ")")
    figure.canvas.draw()
    assert "\n" in figure.get_suptitle() and "\x1b" not in figure.get_suptitle()
    plt.close(figure)
