"""The exported program against the model, in a process that has jax but not this project."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.pretrained import published
from tnt_jax.data.settings import EvalImages
from tnt_jax.models.fast import flash
from tnt_jax.pretrained import load_pretrained
from tnt_jax.tools import export
from tnt_jax.tools.trained import Trained

IMAGES = EvalImages(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
NAMES = tuple(f"class {i}" for i in range(10))

# The test puts the README's code, which a caller would type, between these two.
BEFORE = """
import sys

for name in ("tnt_jax", "flax", "tensorflow"):
    sys.modules[name] = None  # importing it raises ImportError

import numpy as np

"""
AFTER = """
for count in (1, 7):
    logits = program.call(np.load("images.npy")[:count])
    np.save(f"logits{count}.npy", logits)
print(program.platforms)
"""


@pytest.fixture(scope="module")
def trained():
    model = published.model("tnt_tiny")
    variables = load_pretrained(published.weights_file("tnt_tiny"), model)
    return Trained("runs/mine", "tnt_tiny", model, variables, IMAGES, NAMES, "raw weights of step 7", None)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3)).astype(np.uint8)


def logits_of(trained, pixels):
    images = ((pixels / np.float32(255) - np.array(IMAGES.mean)) / np.array(IMAGES.std)).astype(np.float32)
    return images, np.asarray(jax.jit(trained.model.apply)(trained.variables, images))


@pytest.mark.parametrize("kind", export.INPUTS)
def test_without_this_package_one_image_and_seven_have_the_models_logits(trained, pixels, kind, tmp_path):
    export.write_program(trained, tmp_path, kind)
    images, expected = logits_of(trained, pixels)
    np.save(tmp_path / "images.npy", pixels if kind == "uint8" else images)
    (tmp_path / "run.py").write_text(BEFORE + readme_code(tmp_path, 'np.load("images.npy")[:2]') + AFTER)
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    best, platforms = done.stdout.splitlines()
    assert best == NAMES[expected[0].argmax()] and platforms == "('cpu', 'cuda', 'tpu')"
    for count in (1, 7):
        np.testing.assert_allclose(np.load(tmp_path / f"logits{count}.npy"), expected[:count], atol=1e-5)


def readme_code(folder, images):
    """Returns the README's code, after a line that defines `images`."""
    code = re.search("```python\n(.*?)```", (folder / export.README_FILE).read_text(), re.DOTALL).group(1)
    return f"images = {images}\n{code}"


def test_the_file_is_the_weights_and_little_more(trained, tmp_path):
    """Constants are stored once, not once per platform."""
    path = export.write_program(trained, tmp_path)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(trained.variables))
    assert weights < path.stat().st_size < weights + 200_000
    assert json.loads((tmp_path / "classes.json").read_text()) == list(NAMES)
    readme = (tmp_path / "README.md").read_text()
    assert "Made from mine, raw weights of step 7, by jax" in readme
    assert "shorter side is resized to 35 pixels (bicubic" in readme and "subtracts (0.4, 0.5, 0.6)" in readme


def test_no_platform_gets_a_kernel_of_another(trained, monkeypatch):
    """A program with a custom call, such as a Pallas kernel, would run on only one kind of device."""
    monkeypatch.setattr(flash, "LEAST_TOKENS", 2)  # "auto" would use the outer attention's kernel on TPUs
    text = export.export_program(trained).mlir_module()
    assert "stablehlo.custom_call @tpu" not in text and "mosaic" not in text.lower()
    assert re.search(r"tensor<\?x32x32x3xui8>", text)


def test_the_program_says_what_it_wrote_and_checked(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "open_trained", lambda source, image_size, weights, changes: trained)
    export.main(["--source=x", f"--output={tmp_path / 'a'}", "--dtype=bfloat16"])
    said = capsys.readouterr().out
    assert re.search(
        r": raw weights of step 7, 0\.\d MB for cpu, cuda, tpu, loaded in \d\.\d\d s; .* at most \d\.\de[+-]\d\d on",
        said,
    )
    export.main(["--source=x", f"--output={tmp_path / 'b.safetensors'}", "--format=safetensors"])
    back = load_pretrained(tmp_path / "b.safetensors", trained.model)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, dict(trained.variables)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=a.safetensors"], "go into a folder"),
        (["--output=a.pb"], "go into a folder"),
        (["--output=a.onnx"], "no export to ONNX here. Through timm"),
        (["--output=a.TFLITE"], "no export to TensorFlow Lite here"),
        (["--output=a", "--format=safetensors"], "choose a name with that ending"),
        (["--output=a.safetensors", "--format=safetensors", "--dtype=bfloat16"], "weights are float32"),
    ],
)
def test_what_cannot_work_ends_with_one_message(trained, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(export, "open_trained", lambda source, image_size, weights, changes: trained)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        export.main(["--source=x", *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err and not list(tmp_path.iterdir())
