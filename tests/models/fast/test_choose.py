"""Which implementation each device gets, and the errors that say why another is refused."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnt_jax
from tests.models.helpers import images, random_variables, small_model
from tnt_jax.models import checks, fast, layers, tnt
from tnt_jax.models.fast import fused
from tnt_jax.models.fast.attention import broadcast_attention, dot_attention
from tnt_jax.models.fast.fused import from_feature_major, to_feature_major
from tnt_jax.models.layers import Ops
from tnt_jax.models.variants import update

SIZES = {"inner_dim": 8, "inner_num_heads": 1}
KERNEL = {"inner_implementation": "pallas", "device_kind": "interpreter"}


@pytest.fixture
def log(monkeypatch):
    """The warnings logged so far."""
    said = []
    monkeypatch.setattr(fused.logging, "warning", lambda *words: said.append(words[0] % words[1:]))
    fused.log_once.cache_clear()
    yield said
    fused.log_once.cache_clear()


@pytest.fixture
def another_parameter(monkeypatch):
    """Changes the definition as a user may: a learnable scale on what the inner block adds to the words."""

    published = tnt.InnerBlock

    class Scaled(published):
        @nn.compact
        def __call__(self, words, drop, return_weights=False):
            mixed, weights = published.__call__(self, words, drop, return_weights)
            return words + self.param("scale", nn.initializers.constant(0.5), words.shape[-1:]) * (
                mixed - words
            ), weights

    for module in (tnt, fused):
        monkeypatch.setattr(module, "InnerBlock", Scaled)


def reason(kind, **changes):
    return fast.choose(tnt_jax.create_model("tnt_s_patch16_224", **changes).config, "auto", kind).reason


def test_where_the_kernel_cannot_be_had_auto_does_without_it():
    assert reason("TPU v5 lite") is None and reason("TPU v5p") is None
    assert reason("TPU v6 lite", dtype="bfloat16") is None
    assert "the device is cpu" in reason("cpu")
    assert "device is TPU v4" in reason("TPU v4") and "device is TPU v9" in reason("TPU v9")
    assert "float16" in reason("TPU v5 lite", dtype="float16")
    assert "groups of 8" in reason("TPU v5 lite", inner_dim=10, inner_num_heads=2, word_size=16)
    assert "multiples" in reason("TPU v5 lite", mlp_ratio=0.5)  # 12 hidden channels
    assert reason("TPU v5 lite", tnt_blocks=()) == "there is no inner block"


def test_where_auto_does_without_the_kernel_on_a_tpu_the_log_says_why_once(log):
    for kind in ("TPU v4", "TPU v4", "TPU v5 lite", "cpu"):
        reason(kind)
    assert len(log) == 1 and log[0].endswith("a TPU v5e, v5p or v6e, and the device is TPU v4")


def test_an_unknown_parameter_is_never_ignored(another_parameter, log):
    model = small_model(**SIZES)
    variables = random_variables(model)
    assert "scale" in variables["params"]["block_1"]["inner"]
    with pytest.raises(ValueError, match=r"inner block has an unknown scale \(8,\).*use 'auto' or 'xla'"):
        update(model, **KERNEL).apply(variables, images())
    expected = update(model, inner_implementation="reference").apply(variables, images())
    for kind in ("cpu", "TPU v5 lite", "interpreter"):
        found = update(model, device_kind=kind).apply(variables, images())
        assert float(jnp.abs(found - expected).max()) < 1e-4 * float(jnp.abs(expected).max())
    assert len(log) == 1 and "scale (8,)" in log[0]
    gradient = jax.grad(lambda values: update(model, device_kind="TPU v5 lite").apply(values, images()).sum())(
        variables
    )
    assert float(jnp.abs(gradient["params"]["block_1"]["inner"]["scale"]).max()) > 0


def test_another_class_with_the_same_parameters_is_never_the_kernels(monkeypatch, log):
    class Doubled(tnt.InnerBlock):
        @nn.compact
        def __call__(self, words, drop, return_weights=False):
            return 2 * words, None

    model = small_model(**SIZES, depth=1)
    variables = random_variables(model)
    monkeypatch.setattr(tnt, "InnerBlock", Doubled)
    expected = update(model, inner_implementation="reference").apply(variables, images())
    found = update(model, device_kind="interpreter").apply(variables, images())
    assert float(jnp.abs(found - expected).max()) < 1e-4 * float(jnp.abs(expected).max())
    assert len(log) == 1 and "the inner block is Doubled" in log[0]
    with pytest.raises(ValueError, match="the inner block is Doubled; use 'auto' or 'xla'"):
        update(model, **KERNEL).apply(variables, images())


def test_an_inner_block_with_another_input_is_a_reason(monkeypatch):
    class Informed(nn.Module):
        config: object
        ops: object

        def __call__(self, words, sentence, drop):
            return words + sentence

    monkeypatch.setattr(fused, "InnerBlock", Informed)
    assert "does not take only words and drop-path masks" in reason("interpreter", depth=1)
    assert "the device is cpu" in reason("cpu", depth=1)


@pytest.mark.parametrize("changes", [{"scan": True}, {"remat": True}])
def test_parameters_that_the_models_own_loop_makes_are_not_ignored_by_another_loop(changes):
    model = small_model(**SIZES)
    variables = random_variables(model)
    jax.eval_shape(update(model, **changes).apply, variables, images())
    more = {"params": variables["params"] | {"gain_1": jnp.ones(())}}
    with pytest.raises(ValueError, match=r"does not know \['gain_1'\]: set model.scan and model.remat to False"):
        jax.eval_shape(update(model, **changes).apply, more, images())


def test_a_layer_with_another_parameter_is_computed_as_it_is_defined(monkeypatch, log):
    """The fast dense layers know only a kernel and a bias, so they do not replace a definition with a gain."""

    class Gained(nn.Dense):
        @nn.compact
        def __call__(self, x):
            return self.param("gain", nn.initializers.constant(2.0), ()) * nn.Dense.__call__(self, x)

    monkeypatch.setattr(layers.Layers, "dense_layer", Gained)
    monkeypatch.setattr(layers.Layers.__init__, "__defaults__", (Gained, *layers.Layers.__init__.__defaults__[1:]))
    model = small_model(**SIZES)
    variables = random_variables(model)
    assert "gain" in variables["params"]["block_1"]["outer"]["mlp"]["dense1"]
    expected = update(model, inner_implementation="reference").apply(variables, images())
    np.testing.assert_array_equal(model.apply(variables, images()), expected)
    assert len(log) == 1 and "dense/gain" in log[0] and "'auto' is 'reference'" in log[0]
    with pytest.raises(ValueError, match="dense/gain.*use 'reference'"):
        update(model, inner_implementation="xla").apply(variables, images())


def test_a_missing_or_misshapen_parameter_is_named():
    config = small_model(**SIZES).config
    block = tnt.InnerBlock(config, Ops.definition(config))
    params = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((4, 8)), {})["params"]
    assert fused.mismatch(config, params) is None
    assert fused.mismatch(config, params | {"norm1": {"scale": params["norm1"]["scale"]}}) == (
        "the inner block has no norm1/bias (8,)"
    )
    wide = params | {"norm1": {name: jax.ShapeDtypeStruct((9,), jnp.float32) for name in ("scale", "bias")}}
    assert "norm1/scale (9,) instead of (8,)" in fused.mismatch(config, wide)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"mlp_ratio": 2.0}, r"dense1/kernel \(8, 16\) instead of"), ({"qkv_bias": True}, "key/bias")],
)
@pytest.mark.parametrize("scan", [False, True])
def test_the_kernel_takes_the_parameters_of_its_own_block_alone(changes, words, scan):
    other = random_variables(small_model(**SIZES, **changes))
    model = small_model(**SIZES, **KERNEL, scan=scan)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(model.apply, other, images())


def test_the_kernel_on_a_cpu_says_what_to_do():
    model = small_model(**SIZES, inner_implementation="pallas")
    with pytest.raises(ValueError, match=r"device is cpu; use 'auto' or 'xla'"):
        model.apply(random_variables(model), images())


@pytest.mark.parametrize("changes", [{}, {"legacy": True}, {"qkv_bias": True}, {"tnt_blocks": ()}])
def test_the_parameters_are_the_same_in_all(changes):
    def made(**other):
        model = tnt_jax.create_model("tnt_s_patch16_224", depth=2, **changes, **other)
        return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))

    for name in checks.IMPLEMENTATIONS:  # pallas too: initialising parameters needs no TPU
        assert made(inner_implementation=name) == made()


def test_feature_major_and_back():
    words = jnp.arange(2 * 3 * 4).reshape(2, 3, 4)
    rows = to_feature_major(words)
    assert rows[1 * 4 + 2, 1] == words[1, 1, 2]
    assert (from_feature_major(rows, 3) == words).all()


@pytest.mark.parametrize("kind", ["NVIDIA H200", "TPU v4", "cpu"])
@pytest.mark.parametrize(("name", "attention"), [("dot", dot_attention), ("broadcast", broadcast_attention)])
def test_a_named_inner_attention_replaces_nothing_else(kind, name, attention):
    config = tnt_jax.create_model("tnt_s_patch16_224").config
    xla, named = fast.choose(config, "xla", kind).ops, fast.choose(config, name, kind).ops
    assert named.inner.attend is attention
    assert dataclasses.replace(named, inner=dataclasses.replace(named.inner, attend=xla.inner.attend)) == xla


def test_the_default_device_decides_where_none_is_named():
    assert fast.default_device_kind() == jax.devices()[0].device_kind
    with jax.default_device(jax.devices("cpu")[1]):
        assert fast.default_device_kind() == "cpu"
    with jax.default_device("cpu"):
        assert fast.default_device_kind() == "cpu"


@pytest.mark.parametrize(
    ("name", "size", "kernels"),  # forward and backward of the inner blocks; at 384 pixels of the outer attention too
    [("tnt_b_patch16_224", 224, 2), ("tnt_s_patch16_224", 384, 4)],
)
def test_a_training_step_with_the_kernels_lowers_for_a_tpu(name, size, kernels):
    """Runs Mosaic's own checks without libtpu: shapes, layouts and operations that a TPU lacks fail here."""
    settings = {"image_size": size, "depth": 1, "dtype": "bfloat16", "drop_path_rate": 0.1}
    model = tnt_jax.create_model(name, device_kind="TPU v5 lite", **settings)
    image = jax.ShapeDtypeStruct((8, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def loss(values, image):
        return model.apply(values, image, train=True, rngs={"dropout": jax.random.key(0)}).sum()

    text = jax.jit(jax.grad(loss)).trace(variables, image).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == kernels
