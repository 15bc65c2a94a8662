"""Every implementation computes the definition's outputs and all its gradients from the same parameters.

A formula changed in models/tnt.py or models/layers.py but not in models/fast fails here; the message names the
implementation and the arrays that differ.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from tests.models.helpers import images, random_variables, small_model
from tnt_jax.models.fast import Backend

DEVICES = {"CPU": "cpu", "TPU": "TPU v4", "kernel": "interpreter"}
LOOPS = {
    "block by block": {},
    "scan": {"scan": True},
    "remat": {"remat": True},
    "scan and remat": {"scan": True, "remat": True, "remat_policy": "dots_with_no_batch_dims_saveable"},
}
# Two heads of 2 channels: few operations to interpret.
SMALLEST = {"inner_dim": 4, "inner_num_heads": 2, "mlp_ratio": 2.0, "drop_path_rate": 0.4}
MODELS = {
    "TNT": SMALLEST,
    "one block": SMALLEST | {"depth": 1, "layer_scale": 0.5},
    "mixed": SMALLEST
    | {"tnt_blocks": (2,), "qkv_bias": True, "legacy": True, "squeeze_excitation": True}
    | {"layer_scale": 0.5, "pooling": "mean", "sentence_encoding": "sincos"},
}
REQUESTED = ("words", "sentences")


def outcome(model, variables):
    """Returns {name: array} of logits, features and gradients of all parameters, with drop path active."""
    weight = jax.random.normal(jax.random.key(5), (2, 5))

    def loss(values):
        rngs = {"dropout": jax.random.key(3)}
        logits, features = model.apply(values, images(), train=True, rngs=rngs, return_features=REQUESTED)
        return (logits * weight).sum(), {"logits": logits, "features": features}

    function = jax.jit(jax.value_and_grad(loss, has_aux=True))
    with jax.default_matmul_precision("highest"):
        (_, outputs), gradients = function(variables)
    found = outputs | {"gradient": gradients["params"]}
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@functools.cache
def definition(name):
    """Returns (variables, outcome) of the definition."""
    model = small_model(**MODELS[name], inner_implementation="reference")
    variables = random_variables(model)
    return variables, outcome(model, variables)


def differences(found, expected):
    """Returns {name: error} of the arrays that differ by more than rounding, relative to the largest value of each."""
    tiny = 1e-12  # a gradient may be zero
    error = {
        name: float(jnp.abs(found[name] - right).max() / (jnp.abs(right).max() + tiny))
        for name, right in expected.items()
    }
    return {name: value for name, value in error.items() if not value < 2e-5}


@pytest.mark.parametrize(
    ("name", "device", "loop"),
    [("TNT", device, loop) for device in ("CPU", "TPU") for loop in LOOPS]
    + [("mixed", "CPU", "scan"), ("mixed", "TPU", "block by block")]
    + [("one block", "kernel", "block by block"), ("one block", "kernel", "remat")]
    + [("TNT", "kernel", "scan"), ("mixed", "kernel", "scan and remat")],
)
def test_implementations_are_the_definition(name, device, loop):
    variables, expected = definition(name)
    backend = Backend(device_kind=DEVICES[device], **LOOPS[loop])
    found = outcome(small_model(**MODELS[name]).clone(ops=backend), variables)
    different = differences(found, expected)
    assert not different, f"{device}, {loop} ({name}) is not what models/tnt.py defines: {different}"
