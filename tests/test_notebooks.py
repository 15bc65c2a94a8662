"""Runs the notebooks in clean kernels: no network, no accelerator, one device."""

import os
import pathlib
import shutil
import subprocess
import sys

import nbclient
import nbformat
import pytest

from tests.training.helpers import random_variables
from tnt_jax.models.variants import create_model
from tnt_jax.pretrained import save_pretrained

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
SECONDS = 900  # per cell, on a busy machine


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def run(name, tmp_path, change=("", ""), **variables):
    """Executes a notebook in its own folder, as a reader would -> (printed text, number of figures).

    change: (old, new) text, replaced in the one cell that has the old text.
    """
    environment = os.environ | variables | {"XDG_CACHE_HOME": str(tmp_path)}
    flags = environment["XLA_FLAGS"].split()  # conftest's eight devices would share two cores
    environment["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    notebook = read(name)
    if change[0]:
        (cell,) = (cell for cell in notebook.cells if change[0] in cell.source)
        cell.source = cell.source.replace(*change)
    resources = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources=resources).execute(env=environment)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    return printed, sum("image/png" in output.get("data", {}) for output in outputs)


def test_none_is_forgotten_here():
    assert NAMES == ["published_weights", "train", "words_and_sentences"]


@pytest.mark.parametrize("name", NAMES)
def test_they_are_committed_without_outputs_and_with_the_same_installation(name):
    """Outputs go stale when the code changes and are unreadable in a diff; these tests compute them each time."""
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert code[0].source == next(cell for cell in read("train").cells if cell.cell_type == "code").source


@pytest.fixture
def first_cell(tmp_path):
    """Returns a function that runs the first cell twice in a folder, in a new process without tnt_jax.

    REPOSITORY is a small repository whose tnt_jax prints its own path.
    """
    origin = tmp_path / "origin"
    (origin / "tnt_jax").mkdir(parents=True)
    (origin / "tnt_jax/__init__.py").write_text("print(__file__)")
    (origin / "requirements.txt").write_text("")
    for command in (["init"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "one"]):
        subprocess.run(["git", *command], cwd=origin, check=True, capture_output=True)
    cell = next(cell for cell in read("train").cells if cell.cell_type == "code").source
    assert 'REPOSITORY = ""' in cell
    program = f"""
import os, sys
sys.path[:] = [path for path in sys.path if path and not os.path.isfile(os.path.join(path, "tnt_jax", "__init__.py"))]
sys.path.insert(0, "")
cell = {cell!r}.replace('REPOSITORY = ""', 'REPOSITORY = "file://{origin}"' if sys.argv[1:] else 'REPOSITORY = ""')
exec(cell)
exec(cell)
os.chdir("/")
import tnt_jax
"""

    def run(folder, *arguments):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    return run


def test_the_first_cell_may_run_twice_and_again_in_a_new_kernel(first_cell, tmp_path):
    folder = tmp_path / "colab"
    for _ in range(2):
        done = first_cell(folder, "clone")
        assert done.stdout == f"{folder / 'tnt_jax_repository/tnt_jax/__init__.py'}\n", done.stderr
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("name", ["tnt_jax", "another_name"])
def test_the_first_cell_finds_a_clone_beside_the_notebook(first_cell, tmp_path, name):
    folder = tmp_path / "work"
    shutil.copytree(tmp_path / "origin", folder / name)
    done = first_cell(folder)
    assert done.stdout == f"{folder / name / 'tnt_jax/__init__.py'}\n", done.stderr


def test_without_a_clone_the_first_cell_asks_for_the_address(first_cell, tmp_path):
    (tmp_path / "work/tnt_jax").mkdir(parents=True)  # an empty folder of that name is not a package
    done = first_cell(tmp_path / "work")
    assert done.returncode == 1 and "into REPOSITORY." in done.stderr


def test_train_learns_digits_and_looks_inside(tmp_path):
    printed, figures = run(
        "train", tmp_path, ("config.epochs, config.warmup_epochs = 40.0", "config.epochs, config.warmup_epochs = 12.0")
    )
    right = float(printed.split("right: ")[1].split("%")[0])
    assert right > 70 and figures == 4  # 97 to 99 after all 40 epochs
    assert "inner_attention  [(360, 16, 2, 4, 4), (360, 16, 2, 4, 4)]" in printed


def test_published_weights_from_a_file(tmp_path):
    """Replaces the hub's weights with random ones of a published shape, by the variable that the notebook explains."""
    model = create_model("tnt_ti_patch16_224")
    file = tmp_path / "weights.safetensors"
    save_pretrained(file, model, random_variables(model, 224))
    printed, figures = run("published_weights", tmp_path, TNT_WEIGHTS=f"tnt_ti_patch16_224:{file}")
    assert "tnt_ti_patch16_224: 6,076,408 parameters, 1000 classes" in printed and figures == 3
    assert "rows sum to 0.99999" in printed or "rows sum to 1.0" in printed


def test_words_and_sentences(tmp_path):
    printed, figures = run("words_and_sentences", tmp_path)
    assert "sentences whose words changed: [79] (the one in row 5, column 9 is number 79)" in printed
    assert "sentences that changed: 196 of 196" in printed
    assert "1.14 times the multiply-adds" in printed and figures == 3
    trained = [float(line.split("%")[0].split()[-1]) for line in printed.splitlines() if "% " in line]
    assert len(trained) == 4 and min(trained) > 50  # chance is 10
