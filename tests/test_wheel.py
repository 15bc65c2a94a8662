"""`pip install .` is complete: the wheel, installed in a folder of its own, works outside the clone."""

import ast
import csv
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from tests.training.helpers import random_variables
from tnt_jax.models.variants import create_model
from tnt_jax.pretrained import save_pretrained

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = sorted(path.stem for path in (ROOT / "tnt_jax/tools").glob("*.py") if "__main__" in path.read_text())
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


# Libraries that the package's dependencies import without declaring them (requirements.txt names which).
UNDECLARED = {"flatbuffers", "importlib-resources", "tensorboard"}


def imports(file):
    """Yields the modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def files(folder):
    return {
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"
    }


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Builds and installs the wheel -> a function that runs Python outside the clone with only that installation."""
    folder = tmp_path_factory.mktemp("wheel")
    sources, installed, elsewhere = folder / "tnt_jax", folder / "installed", folder / "elsewhere"
    elsewhere.mkdir()
    # Build from a copy, because setuptools writes beside the sources.
    shutil.copytree(ROOT / "tnt_jax", sources / "tnt_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, sources)
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), "."]
    built = subprocess.run(build, cwd=sources, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(installed), str(wheel)], check=True)
    environment = os.environ | {"PYTHONPATH": str(installed), "XLA_FLAGS": QUICK}

    def run(*arguments):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)

    assert files(ROOT / "tnt_jax") == files(installed / "tnt_jax")  # page.html too
    # As beside a clone, the working folder contains a folder tnt_jax, which Python could import as an empty package.
    (elsewhere / "tnt_jax").mkdir()
    found = run("-c", "import tnt_jax; print(tnt_jax.__file__)")
    assert found.stdout.strip() == str(installed / "tnt_jax/__init__.py"), found.stderr
    return run


def test_an_editable_installation_is_a_path_that_a_clone_beside_the_script_does_not_hide(tmp_path):
    """As in `make install`. setuptools' other form, an import hook, would lose to the clone as an empty package."""
    clone = tmp_path / "tnt_jax"
    shutil.copytree(ROOT / "tnt_jax", clone / "tnt_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, clone)
    build = "from setuptools import build_meta; print(build_meta.build_editable('..'))"
    built = subprocess.run([sys.executable, "-c", build], cwd=clone, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        (name,) = [name for name in wheel.namelist() if not name.partition("/")[0].endswith(".dist-info")]
        assert name.endswith(".pth") and wheel.read(name).decode().strip() == str(clone)


def test_the_package_imports_nothing_from_beside_it():
    """Such an import works only in the clone."""
    beside = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()} - {"tnt_jax"}
    assert {"configs", "main", "tests", "benchmarks"} <= beside
    for file in sorted((ROOT / "tnt_jax").rglob("*.py")):
        for name in imports(file):
            assert name.partition(".")[0] not in beside, f"{file} imports {name}"


def test_what_is_imported_is_required_and_what_is_required_is_imported():
    """Counts imports inside functions too. The other tests run with every library installed, required or not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    lines = [*filter(None, lines), *itertools.chain(*project["optional-dependencies"].values())]
    required = [each for each in map(Requirement, lines) if each.marker is None or each.marker.evaluate()]
    distributions = metadata.packages_distributions()
    imported = set()
    for file in sorted((ROOT / "tnt_jax").rglob("*.py")):
        for name in imports(file):
            package = name.partition(".")[0]
            if package != "tnt_jax" and package not in sys.stdlib_module_names:
                imported |= set(map(canonicalize_name, distributions.get(package, [package])))
    assert len(imported) > 15
    assert {canonicalize_name(each.name) for each in required} == imported | UNDECLARED


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_is_there(start, program):
    done = start("-m", f"tnt_jax.tools.{program}", "--help")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert program in done.stdout and "--" in done.stdout


def test_it_predicts(start, tmp_path):
    name = "deit_tiny_patch16_224"
    model = create_model(name, num_classes=3)
    save_pretrained(tmp_path / "weights.safetensors", model, random_variables(model, 224))
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    source = f"--source={name}:{tmp_path / 'weights.safetensors'}"
    done = start("-m", "tnt_jax.tools.predict", tmp_path / "grey.png", source, "--image-size=32", "--format=csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert {row["class"] for row in rows} == {"0", "1", "2"}
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-5)
