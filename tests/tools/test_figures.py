"""The program: figures from a weights file and from a run, and one clear line for each error."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from tests.models.helpers import random_variables, small_model
from tests.training.helpers import tiny_config
from tnt_jax.analysis.figures import ask
from tnt_jax.data.settings import EvalImages
from tnt_jax.models.variants import create_model, update
from tnt_jax.pretrained import save_pretrained
from tnt_jax.tools import figures
from tnt_jax.tools.trained import Trained, check_run


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def small(monkeypatch):
    """Replaces the published models with two small ones: DeiT-S without an inner path, TNT-S with one."""
    sizes = {"deit_small_patch16_224": {"tnt_blocks": ()}, "tnt_s_patch16_224": {}}
    models = {name: small_model(depth=1, **changes) for name, changes in sizes.items()}
    monkeypatch.setattr(figures, "create_model", models.__getitem__)
    monkeypatch.setattr("tnt_jax.pretrained.load.create_model", lambda name, **changes: update(models[name], **changes))
    return models


BOTH = "deit_small_patch16_224:random,tnt_s_patch16_224:random"


def test_chosen_figures_side_by_side(small, picture, tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    arguments = [f"--models={BOTH}", f"--image={picture}", f"--output={output}", "--figure=class_attention, 4"]
    figures.main([*arguments, "--query=5,10", "--query=63", "--attention-size=20x24"])
    written = sorted(path.name for path in output.iterdir())
    assert written == [
        f"{name}.{end}" for name in ("class_attention", "inner_attention") for end in ("npz", "pdf", "png")
    ]
    assert capsys.readouterr().out.split() == [
        f"{output}/inner_attention.png,", ".pdf,", ".npz", f"{output}/class_attention.png,", ".pdf,", ".npz",
    ]  # fmt: skip
    arrays = np.load(output / "inner_attention.npz")
    assert arrays["tnt_s_random_weights_queries"].tolist() == [[8, 1], [15, 3]]  # of 5 x 6 sentences
    arrays = np.load(output / "class_attention.npz")
    assert arrays["deit_s_random_weights_maps"].shape == arrays["tnt_s_random_weights_maps"].shape == (3, 5, 6)


def test_weights_of_a_file_are_its_own_and_normalised_as_published(small, tmp_path):
    model = small["deit_small_patch16_224"]
    variables = random_variables(model)
    save_pretrained(tmp_path / "deit.safetensors", model, variables)
    subject = figures.open_subject(f"deit_small_patch16_224:{tmp_path}/deit.safetensors")
    assert subject.title == "DeiT-S" and subject.images.mean == (0.485, 0.456, 0.406)
    np.testing.assert_array_equal(subject.variables["params"]["norm"]["bias"], variables["params"]["norm"]["bias"])
    twice = figures.open_subjects(",".join([f"deit_small_patch16_224:{tmp_path}/deit.safetensors"] * 2))
    assert [each.title for each in twice] == ["DeiT-S, 1", "DeiT-S, 2"]


def test_random_weights_get_the_images_of_the_published_ones(small):
    sources = ("deit_small_patch16_224:random", "tnt_s_patch16_224:random")
    assert [figures.open_subject(source).images.mean for source in sources] == [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)]


def test_titles_whose_arrays_would_have_one_name_get_a_number(small, monkeypatch):
    subject = figures.open_subject("tnt_s_patch16_224:random")
    monkeypatch.setattr(
        figures, "open_subject", lambda name, weights, changes: dataclasses.replace(subject, title=f"TNT ({name})")
    )
    assert [each.title for each in figures.open_subjects("run-1,run_1,run")] == [
        "TNT (run-1), 1", "TNT (run_1), 2", "TNT (run)",
    ]  # fmt: skip


def test_a_larger_model_is_the_same_with_positions_interpolated(small):
    subject = figures.open_subject("tnt_s_patch16_224:random")
    larger = subject.at((20, 24))
    assert larger.model.grid == (5, 6) and larger.variables["params"]["sentence_position"].shape[0] == 31
    images = np.random.default_rng(0).normal(size=(1, 20, 24, 3)).astype(np.float32)
    np.testing.assert_allclose(
        larger.model.apply(larger.variables, images), subject.model.apply(subject.variables, images), atol=1e-5
    )


def test_a_pixel_that_is_another_word_in_each_model_is_refused(small):
    subjects = [figures.open_subject("tnt_s_patch16_224:random")]
    subjects.append(subjects[0].at((20, 20)))
    assert ask(subjects, ["1,2"]) == [(0, 1)]
    with pytest.raises(ValueError, match="--query=5,10 is another word in each"):
        ask(subjects, ["5,10"])


def test_an_example_of_a_runs_data_is_the_image_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tiny_config(data__name="digits", data__directory=str(tmp_path), data__eval_split="test[:3]")
    run = tmp_path / "run,1"  # a comma is allowed in paths that do not come from --models
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    pixels = figures.open_image("eval:2", ["tnt_s_patch16_224:x", str(run)])
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8 and pixels.std() > 20
    with pytest.raises(ValueError, match="no image 3 in 'test.:3.'; they are numbered from 0 to 2"):
        figures.open_image("eval:3", [str(run)])


def test_a_runs_own_figures_and_its_accuracy(tmp_path, monkeypatch, capsys):
    """Draws the first images of the run's evaluation split, with its class names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = {"data__name": "digits", "data__directory": str(tmp_path), "data__eval_split": "test"}
    settings = data | {"model__num_classes": 10}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(tiny_config(**settings).to_dict()))
    lines = [{"step": step, "train/loss": 2.0 / step} for step in (1, 2, 3)]
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = {"best": "eval_ema", "eval_ema": {"accuracy": 0.975, "count": 360}}
    (tmp_path / "run/summary.json").write_text(json.dumps(results))
    run = check_run(tmp_path / "run")
    model = create_model(**run.model.arguments())
    images, names = EvalImages((0.5,) * 3, (0.5,) * 3), tuple("abcdefghij")
    trained = Trained(str(tmp_path / "run"), "tnt", model, random_variables(model), images, names, "raw", run)
    monkeypatch.setattr(figures, "open_trained", lambda source, weights, changes: trained)
    shown = []
    draw = figures.draw_class_token_attention
    monkeypatch.setattr(
        figures,
        "draw_class_token_attention",
        lambda *a, **k: shown.append((a[2].shape, k["class_names"])) or draw(*a, **k),
    )
    figures.main([f"--workdir={tmp_path / 'run'}", "--num-images=3"])
    assert shown == [((3, 8, 8, 3), tuple("abcdefghij"))]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "Test accuracy: 97.50% (351 of 360 images, averaged weights)",
        f"Figures: {tmp_path}/run/curves.png, {tmp_path}/run/attention.png",
    ]
    assert all((tmp_path / "run" / name).stat().st_size > 5000 for name in ("curves.png", "attention.png"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --models, --image and --output, or else --workdir"),
        (["--models=a", "--output=b"], "give --models, --image and --output"),
        (["--workdir=a", "--output=b"], "or else --workdir"),
        (["--workdir=a", "--num-images=0"], "argument --num-images: 0 must be at least 1"),
        (["--workdir=NOWHERE"], "metrics.jsonl does not exist; give the --workdir of a run that has trained"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        figures.main([flag.replace("NOWHERE", str(tmp_path)) for flag in flags])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_all_of_a_deit_leaves_out_the_words(small, picture, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(figures, "draw", lambda subjects, pixels, names, **options: asked.extend(names) or [])
    figures.main(["--models=deit_small_patch16_224:random", f"--image={picture}", f"--output={tmp_path}"])
    assert asked == ["feature_maps", "tsne", "outer_attention", "class_attention"]
    assert "words and inner_attention are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image": "none.png"}, "none.png: there is no such file"),
        ({"image": "eval:1"}, "none of the models is a workdir"),
        ({"image": "eval:first"}, "the image's number, from 0"),
        ({"figure": "clas_attention"}, "no figure 'clas_attention'; did you mean 'class_attention'"),
        ({"figure": "7"}, "no figure '7'"),
        ({"models": ""}, "--models is empty"),
        ({"models": "tnt_s_patch16_224"}, "does not say which model"),
        ({"models": "tnt_s_patch16_224:gone.safetensors"}, "gone.safetensors: there is no such file"),
        (
            {"models": "deit_small_patch16_224:random", "figure": "3"},
            "no inner path, so there is no figure of the word",
        ),
        ({"models": "deit_small_patch16_224:random", "figure": "4"}, "no inner path"),
        ({"query": "16,0"}, "outside the model's input of 16 x 16 pixels"),
        ({"image-size": "25"}, "image_size=25 is not a multiple of patch_size=4; use 24 or 28"),
        ({"attention-size": "2"}, "image_size=2 is not a multiple of patch_size=4; use 4"),
    ],
)
def test_one_line_says_what_cannot_work(small, picture, tmp_path, capsys, changes, message):
    flags = {"models": BOTH, "image": str(picture), "output": str(tmp_path / "out"), "figure": "all"} | changes
    with pytest.raises(SystemExit) as stop:
        figures.main([f"--{name}={value}" for name, value in flags.items()])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.startswith("figures: ") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
