"""Which packages may import which, and which libraries a model and its training step do not need."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
BASICS = {"keys", "names", "workdir"}  # modules at the top of the package
MAY_IMPORT = {
    "models": set(),
    "data": set(),
    "pretrained": {"models"},
    "training": {"models", "data", "pretrained"},
    "analysis": {"models", "data", "training"},
    "tools": {"models", "data", "pretrained", "training", "analysis"},
}
PROGRAM = """
import sys

for name in ("tensorflow", "tensorflow_datasets", "clu", "orbax", "grain"):
    sys.modules[name] = None  # importing it raises ImportError

import jax
import numpy as np
import tnt_jax
import tnt_jax.training.steps
import benchmarks.gpu, benchmarks.sides.ours  # also used on GPU machines without those

sizes = dict(image_size=8, patch_size=4, word_size=2, inner_dim=2, outer_dim=4, inner_num_heads=1, outer_num_heads=1)
model = tnt_jax.create_model("tnt_s_patch16_224", depth=1, num_classes=3, **sizes)
images = np.ones((2, 8, 8, 3), np.float32)
shapes = jax.eval_shape(model.init, jax.random.key(0), images)  # traces the initialisers without compiling them
variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
print(jax.jit(model.apply)(variables, images).shape)
"""


def test_a_model_needs_neither_tensorflow_nor_what_training_writes_with():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 3)\n"


def imported(path):
    """Yields the modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_packages_import_one_way():
    folders = {path.parent.name for path in (ROOT / "tnt_jax").glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT)
    for package, others in MAY_IMPORT.items():
        for path in (ROOT / "tnt_jax" / package).rglob("*.py"):
            ours = {name.split(".")[1] for name in imported(path) if name.startswith("tnt_jax.")}
            assert ours <= {package} | others | BASICS, path


def test_the_package_imports_neither_configs_nor_what_is_not_installed():
    outside = {"configs", "main", "tests", "benchmarks"}
    for path in (ROOT / "tnt_jax").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & outside, path
