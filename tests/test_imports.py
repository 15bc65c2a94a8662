"""What the model, and a step of it, can be had without."""

import pathlib
import subprocess
import sys

PROGRAM = """
import sys

for name in ("tensorflow", "tensorflow_datasets", "clu", "orbax", "grain"):
    sys.modules[name] = None  # importing it is an ImportError

import jax
import numpy as np
import tnt_jax
import tnt_jax.training.steps
import benchmarks.gpu, benchmarks.sides.ours  # for a machine that a GPU is lent with

sizes = dict(image_size=8, patch_size=4, word_size=2, inner_dim=2, outer_dim=4, inner_num_heads=1, outer_num_heads=1)
model = tnt_jax.create_model("tnt_s_patch16_224", depth=1, num_classes=3, **sizes)
images = np.ones((2, 8, 8, 3), np.float32)
shapes = jax.eval_shape(model.init, jax.random.key(0), images)  # traces the initialisers, spares compiling them
variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
print(jax.jit(model.apply)(variables, images).shape)
"""


def test_a_model_needs_neither_tensorflow_nor_what_training_writes_with():
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 3)\n"
