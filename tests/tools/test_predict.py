"""The program against a plain model.apply; images that cannot be read; the three output formats."""

import csv
import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from tests.training.helpers import checked_config, random_variables
from tnt_jax.analysis.predictions import Failure, Guess, Prediction
from tnt_jax.data.settings import EvalImages
from tnt_jax.models.variants import create_model
from tnt_jax.tools import predict
from tnt_jax.tools.trained import Trained

NAMES = ("ant", 'bee, "queen"', "cat", "dog", "eel", "fox")
IMAGES = EvalImages(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), eval_crop_fraction=1.0)


@pytest.fixture(scope="module")
def trained():
    model = create_model(**checked_config(model__num_classes=6).model.arguments())
    return Trained("a", "tnt", model, random_variables(model), IMAGES, NAMES, "raw weights of step 7", None)


@pytest.fixture
def folder(tmp_path, monkeypatch, trained):
    """Writes eleven images of the model's size, which resizing does not change, one in a subfolder; and a text file."""
    monkeypatch.setattr(predict, "open_trained", lambda source, image_size, weights, changes: trained)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (11, 8, 8, 3), np.uint8)
    (tmp_path / "photos/more").mkdir(parents=True)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / "photos" / ("more/10.PNG" if number == 10 else f"{number:02}.png"))
    (tmp_path / "photos/notes.txt").write_text("no image")
    return tmp_path / "photos", pixels


def probabilities(trained, pixels):
    images = (pixels / np.float32(255) - np.array(IMAGES.mean)) / np.array(IMAGES.std)
    return np.asarray(jax.nn.softmax(trained.model.apply(trained.variables, images.astype(np.float32))))


def test_json_is_what_the_model_says_of_each_image_of_a_folder(folder, trained, tmp_path):
    """Batches of 8, one image per device, leave 3 images for the last one."""
    place, pixels = folder
    output = tmp_path / "new/answer.json"
    predict.main([str(place), "--source=a", "--format=json", "--batch-size=3", f"--output={output}"])
    found = json.loads(output.read_text())
    assert [entry["image"] for entry in found] == [
        *(str(place / f"{number:02}.png") for number in range(10)),
        str(place / "more/10.PNG"),
    ]
    for entry, row in zip(found, probabilities(trained, pixels), strict=True):
        assert entry["weights"] == "raw weights of step 7"
        best = np.argsort(-row)[:5]
        assert [guess["label"] for guess in entry["predictions"]] == best.tolist()
        assert [guess["class"] for guess in entry["predictions"]] == [NAMES[i] for i in best]
        np.testing.assert_allclose([guess["probability"] for guess in entry["predictions"]], row[best], atol=2e-6)
    assert list(tmp_path.glob("new/*")) == [output]


def test_csv_quotes_what_needs_it_and_top_may_exceed_the_classes(folder, capsys):
    place, _ = folder
    predict.main([str(place / "00.png"), "--source=a", "--format=csv", "--top=9"])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row["weights"] for row in rows} == {"raw weights of step 7"}
    assert [row["rank"] for row in rows] == list("123456") and {row["class"] for row in rows} == set(NAMES)
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_read_is_named_and_the_rest_predicted(folder, capsys):
    place, _ = folder
    (place / "00.png").write_bytes((place / "01.png").read_bytes()[:60])
    (place / "02.png").write_bytes(b"")
    paths = [str(place / name) for name in ("00.png", "01.png", "02.png", "missing.jpg", "notes.txt", "03.png")]
    with pytest.raises(SystemExit) as stop:
        predict.main([*paths, "--source=a", "--format=json"])
    assert stop.value.code == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [("error" in entry, "predictions" in entry) for entry in found] == [
        (kind, not kind) for kind in (True, False, True, True, True, False)
    ]
    assert "missing.jpg cannot be read: No such file" in said.err and "4 of 6 images could not be read" in said.err
    assert "Traceback" not in said.err


def test_table_for_people(folder, capsys):
    place, _ = folder
    predict.main([str(place / "05.png"), "--source=a", "--top=1"])
    weights, name, line = capsys.readouterr().out.splitlines()
    assert weights == "Raw weights of step 7"
    assert name == str(place / "05.png") and line.split("%")[1].strip() in NAMES


def test_names_with_line_ends_and_escape_sequences_stay_in_their_place():
    file, name = pathlib.Path("photos/a\n\x1b[2J\udcff,.png"), '\x1b[31m"fox"\r\n'
    results = [Prediction(file, (Guess(3, name, 0.75),)), Failure(file, "no\nimage")]
    shown, said = r"photos/a\n\x1b[2J\udcff,.png", r"\x1b[31m" + r'"fox"\r\n'
    weights = "raw weights of step 7"
    first, *table = predict.as_table(iter(results), weights)
    assert first == "Raw weights of step 7"
    assert table == [shown, f"   75.00%  {said}", shown, r"      cannot be read: no\nimage"]
    lines = list(predict.as_csv(iter(results), weights))
    assert [line.count("\n") for line in lines] == [0, 0]  # one line per row
    assert list(csv.reader(lines)) == [list(predict.COLUMNS), [shown, "1", "3", said, "0.750000", weights]]
    text = "\n".join(predict.as_json(iter(results), weights))
    assert text.encode() and "\x1b" not in text
    first, second = json.loads(text)
    assert first["image"] == second["image"] == str(file) and first["predictions"][0]["class"] == name  # exact


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["EMPTY", "--source=a"], "there is no image in this folder"),
        (["x.jpg", "--source=a", "--top=0"], "argument --top: 0 must be at least 1"),
        (["x.jpg", "--source=a", "--top=3", "--above=0.5"], "--above lists all classes"),
        (["x.jpg", "--source=nothing.pth"], "does not say which model"),
        (["~nosuchuser/x.jpg", "--source=a"], "there is no user of that name, whose home ~ would be"),
    ],
)
def test_what_cannot_work_ends_with_one_message(tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        predict.main([str(tmp_path / "empty") if word == "EMPTY" else word for word in arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_run_with_the_sigmoid_has_each_classs_own_probability(folder, trained, monkeypatch, capsys):
    place, pixels = folder
    config = checked_config(loss="sigmoid")
    monkeypatch.setattr(predict, "open_trained", lambda *args, **kwargs: dataclasses.replace(trained, config=config))
    predict.main([str(place / "03.png"), "--source=a", "--format=json", "--above=0.5"])
    (entry,) = json.loads(capsys.readouterr().out)
    images = (pixels[3:4] / np.float32(255) - np.array(IMAGES.mean)) / np.array(IMAGES.std)
    row = np.asarray(jax.nn.sigmoid(trained.model.apply(trained.variables, images.astype(np.float32))))[0]
    expected = [label for label in np.argsort(-row).tolist() if row[label] > 0.5]
    assert 0 < len(expected) < 6 and [guess["label"] for guess in entry["predictions"]] == expected
    assert entry["predictions"][0]["probability"] == pytest.approx(row[expected[0]], abs=1e-5)
    predict.main([str(place / "03.png"), "--source=a", "--above=0.999999"])
    assert "no class is as probable as --above" in capsys.readouterr().out
    predict.main([str(place / "03.png"), "--source=a", "--above=0.999999", "--format=csv"])
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert row["image"].endswith("03.png") and row["class"] == "" and row["weights"] == "raw weights of step 7"
