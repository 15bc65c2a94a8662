"""Attention by library kernels: it matches the definition, and each device takes or refuses it."""

import functools

import jax
import jax.numpy as jnp
import pytest

from tests.models.fast.test_implementations import differences, outcome
from tests.models.fast.test_pallas import usual_error
from tests.models.helpers import images, random_variables, small_model
from tnt_jax.models import fast, layers
from tnt_jax.models.fast import flash
from tnt_jax.models.variants import create_model

FLASH = {"outer_implementation": "flash", "device_kind": "interpreter", "inner_implementation": "xla"}


@pytest.fixture
def small_blocks(monkeypatch):
    """Shrinks the kernel's blocks to one tile, so that small inputs span several."""
    monkeypatch.setattr(flash, "_WHOLE", 128)
    monkeypatch.setattr(flash, "_BLOCK", 128)


def attention(attend, dtype, count):
    """Returns [mixed, gradients of query, key and value] for random inputs [2, count, 3, 8]."""
    query, key, value, weight = (
        jax.random.normal(key, (2, count, 3, 8)).astype(dtype) for key in jax.random.split(jax.random.key(1), 4)
    )
    mixed, pull = jax.vjp(attend, query, key, value)
    return [mixed, *pull(weight)]


def error(found, exact):
    """Returns the largest difference of each array, relative to its largest value."""
    pairs = zip(found, exact, strict=True)
    return [float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()) for a, b in pairs]


@pytest.mark.parametrize("count", [17, 130])
def test_splash_attention_is_the_definitions_forward_and_backward(small_blocks, count):
    with jax.default_matmul_precision("highest"):
        found = attention(lambda *x: flash.splash_attention(*x, interpret=True), jnp.float32, count)
        exact = attention(layers.attend, jnp.float32, count)
    assert max(error(found, exact)) < 2e-6


def test_splash_attention_in_bfloat16_is_no_worse_than_xlas():
    with jax.default_matmul_precision("highest"):
        exact = attention(layers.attend, jnp.float32, 17)
        found = attention(lambda *x: flash.splash_attention(*x, interpret=True), jnp.bfloat16, 17)
        xla = attention(layers.attend, jnp.bfloat16, 17)
    assert max(error(found, exact)) < 1.1 * max(error(xla, exact))
    for ours, theirs, right in zip(found, xla, exact, strict=True):  # jax's kernel rounds weights and their gradients
        assert usual_error(ours, right) < 1.2 * usual_error(theirs, right)


@pytest.mark.parametrize("channels", [6, 8, 10])
def test_heads_that_are_padded_for_cudnn_are_the_definitions(channels):
    mapped = jax.vmap(functools.partial(flash.cudnn_attention, implementation="xla"))  # as words are, over sentences
    inputs = jax.random.normal(jax.random.key(0), (4, 3, 16, 2, channels))
    with jax.default_matmul_precision("highest"):
        found, pull = jax.vjp(mapped, *inputs[:3])
        exact, pull_exact = jax.vjp(layers.attend, *inputs[:3])
    assert max(error([found, *pull(inputs[3])], [exact, *pull_exact(inputs[3])])) < 2e-6


def test_words_by_cudnn_are_for_nvidia_gpus_in_16_bits():
    config = create_model("tnt_s_patch16_224", dtype="bfloat16").config
    chosen = fast.choose(config, "cudnn", "NVIDIA H200").ops
    assert chosen.inner.attend is flash.cudnn_attention and chosen.outer.attend is not flash.cudnn_attention
    for kind, dtype, reason in (
        ("cpu", "bfloat16", "device is cpu"),
        ("TPU v5 lite", "bfloat16", "device is TPU v5 lite"),
        ("NVIDIA H200", "float32", "takes bfloat16 .* not float32 of 6"),
    ):
        with pytest.raises(ValueError, match=f"inner_implementation='cudnn' is not possible: .*{reason}.*use 'auto'"):
            create_model("tnt_s_patch16_224", dtype=dtype, inner_implementation="cudnn", device_kind=kind)


@pytest.mark.parametrize(
    ("changes", "loop"),
    [
        ({}, {"scan": True, "remat": True}),
        ({"tnt_blocks": (2,), "qkv_bias": True, "pooling": "mean"}, {"inner_implementation": "pallas"}),
    ],
)
def test_implementations_with_flash_attention_are_the_definition(changes, loop):
    sizes = {"inner_dim": 4, "drop_path_rate": 0.4} | changes
    variables = random_variables(small_model(**sizes))
    expected = outcome(small_model(**sizes, inner_implementation="reference"), variables)
    found = outcome(small_model(**sizes, **FLASH | loop), variables)
    assert not differences(found, expected)


def test_maps_that_are_asked_for_are_the_definitions():
    model = small_model(depth=1, **FLASH)
    variables, names = random_variables(model), ("outer_attention",)
    _, found = model.apply(variables, images(), return_features=names)
    definition = small_model(depth=1, inner_implementation="reference")
    _, expected = definition.apply(variables, images(), return_features=names)
    assert found["outer_attention"][0].shape == (2, 3, 17, 17)
    assert float(jnp.abs(found["outer_attention"][0] - expected["outer_attention"][0]).max()) < 1e-5


def attends(kind, implementation="auto", **changes):
    """Returns the name of what computes the outer attention of a TNT-S on a kind of device."""
    config = create_model("tnt_s_patch16_224", **changes).config
    ops = fast.choose(config, "xla", kind).ops
    chosen = fast.choose_outer(config, ops, implementation, kind).outer.attend
    return "xla" if chosen is ops.outer.attend else getattr(chosen, "func", chosen).__name__


def test_auto_takes_the_kernel_on_tpus_where_it_pays_and_nowhere_else():
    assert attends("TPU v5 lite") == "xla"
    assert attends("TPU v5 lite", image_size=384) == attends("TPU v6 lite", image_size=384) == "splash_attention"
    assert attends("TPU v5 lite", "xla", image_size=384) == attends("cpu", image_size=384) == "xla"
    assert attends("NVIDIA H200", image_size=384, dtype="bfloat16") == "xla"


def test_asked_for_the_kernel_of_the_device_is_taken_or_refused_with_the_reason():
    assert attends("TPU v5 lite", "flash") == "splash_attention"
    assert attends("NVIDIA H200", "flash", dtype="bfloat16") == "cudnn_attention"
    for kind, changes, reason in (
        ("cpu", {}, "device is cpu"),
        ("NVIDIA H200", {}, "takes bfloat16 .* not float32 of 64"),
        ("NVIDIA H200", {"dtype": "bfloat16", "outer_num_heads": 2}, "heads of at most 128"),
    ):
        with pytest.raises(ValueError, match=f"outer_implementation='flash' is not possible: .*{reason}.*use 'auto'"):
            create_model("tnt_s_patch16_224", outer_implementation="flash", device_kind=kind, **changes)
    with pytest.raises(ValueError, match="outer_implementation='pallas' is not known; use one of auto, xla, flash"):
        create_model("tnt_s_patch16_224", outer_implementation="pallas")
