"""The notebooks, from clean kernels: no network, no accelerator, one device."""

import os
import pathlib

import nbclient
import nbformat
import pytest

from tests.training.helpers import random_variables
from tnt_jax.models.variants import create_model
from tnt_jax.pretrained import save_pretrained

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
SECONDS = 900  # for a cell, on a machine that does other things too


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def run(name, tmp_path, **variables):
    """Executes a notebook where it lies, as somebody would who opens it there -> what it printed, how many pictures."""
    environment = os.environ | variables | {"XDG_CACHE_HOME": str(tmp_path)}
    flags = environment["XLA_FLAGS"].split()  # conftest's eight devices would share two cores
    environment["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    notebook = read(name)
    resources = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources=resources).execute(env=environment)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    return printed, sum("image/png" in output.get("data", {}) for output in outputs)


def test_none_is_forgotten_here():
    assert NAMES == ["published_weights", "train", "words_and_sentences"]


@pytest.mark.parametrize("name", NAMES)
def test_they_are_committed_without_outputs_and_with_the_same_installation(name):
    """Outputs would be stale as soon as the code changes, and unreadable in a diff; here they are made each time."""
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert code[0].source == next(cell for cell in read("train").cells if cell.cell_type == "code").source
    assert 'if importlib.util.find_spec("tnt_jax") is None' in code[0].source


def test_train_learns_digits_and_looks_inside(tmp_path):
    printed, pictures = run("train", tmp_path)
    right = float(printed.split("right: ")[1].split("%")[0])
    assert right > 70 and pictures == 4  # chance is 10
    assert "inner_attention  [(120, 16, 2, 4, 4), (120, 16, 2, 4, 4)]" in printed


def test_published_weights_from_a_file(tmp_path):
    """Random weights of a published shape in the place of the hub's, by the variable that the notebook explains."""
    model = create_model("tnt_ti_patch16_224")
    file = tmp_path / "weights.safetensors"
    save_pretrained(file, model, random_variables(model, 224))
    printed, pictures = run("published_weights", tmp_path, TNT_WEIGHTS=f"tnt_ti_patch16_224:{file}")
    assert "tnt_ti_patch16_224: 6,076,408 parameters, 1000 classes" in printed and pictures == 3
    assert "rows sum to 0.99999" in printed or "rows sum to 1.0" in printed


def test_words_and_sentences(tmp_path):
    printed, pictures = run("words_and_sentences", tmp_path)
    assert "sentences whose words changed: [79] (the one in row 5, column 9 is number 79)" in printed
    assert "sentences that changed: 196 of 196" in printed
    assert "1.14 times the multiply-adds" in printed and pictures == 3
    trained = [float(line.split("%")[0].split()[-1]) for line in printed.splitlines() if "% " in line]
    assert len(trained) == 4 and min(trained) > 50  # chance is 10
