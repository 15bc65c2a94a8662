"""Every implementation of the inner blocks is the same function of the same parameters, through the whole model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnt_jax
from tests.models.helpers import images, random_variables, small_model
from tnt_jax.models import implementation
from tnt_jax.models.inner import from_lanes, to_lanes

# The interpreter turns the unrolled kernel into thousands of operations: compile them fast, not well.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KERNEL = {"inner_implementation": "pallas", "device_kind": "interpreter"}
SIZES = {"inner_dim": 8, "inner_num_heads": 1}  # one head: the fewest operations to interpret


def outcome(model, variables, wanted=("words", "sentences")):
    """-> (logits, features, gradients of all parameters) with drop path drawn."""
    weight = jax.random.normal(jax.random.key(5), (2, 5))

    def loss(values):
        rngs = {"dropout": jax.random.key(3)}
        logits, features = model.apply(values, images(), train=True, rngs=rngs, return_features=wanted)
        return (logits * weight).sum(), (logits, features)

    function = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FAST_COMPILE)
    with jax.default_matmul_precision("highest"):
        (_, (logits, features)), gradients = function(variables)
    return logits, features, gradients


def assert_same(found, expected):
    """Equal to rounding, leaf by leaf, relative to the largest number of the leaf."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({"scan": True}, [{"inner_implementation": "xla"}, {"device_kind": "TPU v4"}, KERNEL]),
        ({"remat": True, "tnt_blocks": (2,), "qkv_bias": True, "legacy": True}, [KERNEL]),
    ],
)
def test_all_implementations_give_the_same_logits_features_and_gradients(changes, others):
    model = small_model(**SIZES, drop_path_rate=0.4, **changes)
    variables = random_variables(model)
    expected = outcome(model.clone(inner_implementation="reference", scan=False, remat=False), variables)
    for other in others:
        assert_same(outcome(model.clone(**other), variables), expected)


def test_attention_asked_of_the_kernel_comes_from_the_other_form_and_the_words_stay():
    model = small_model(**SIZES, drop_path_rate=0.4, depth=1)
    variables = random_variables(model)
    names = ("inner_attention", "words", "outer_attention")
    expected = outcome(model.clone(inner_implementation="reference"), variables, names)
    assert_same(outcome(model.clone(**KERNEL), variables, names), expected)


@pytest.mark.parametrize("changes", [{}, {"legacy": True}, {"qkv_bias": True}, {"tnt_blocks": ()}])
def test_the_parameters_are_the_same_in_all(changes):
    def made(**other):
        model = tnt_jax.create_model("tnt_s_patch16_224", depth=2, **changes, **other)
        return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))

    for name in implementation.IMPLEMENTATIONS:  # pallas too: making parameters needs no TPU
        assert made(inner_implementation=name) == made()


def test_words_and_back():
    words = jnp.arange(2 * 3 * 4).reshape(2, 3, 4)
    lanes = to_lanes(words)
    assert lanes[1 * 4 + 2, 1] == words[1, 1, 2]
    np.testing.assert_array_equal(from_lanes(lanes, 3), words)


def test_the_kernel_on_a_cpu_says_what_to_do():
    model = small_model(**SIZES, inner_implementation="pallas")
    with pytest.raises(ValueError, match=r"computes on cpu; use 'auto' or 'xla'"):
        model.apply(random_variables(model), images())


def test_where_the_kernel_cannot_be_had_auto_does_without_it():
    def fused(kind, **changes):
        return tnt_jax.create_model("tnt_s_patch16_224", device_kind=kind, **changes).forms().fused

    assert fused("TPU v5 lite") and fused("TPU v5p") and fused("TPU v6 lite", dtype="bfloat16")
    assert not fused("TPU v4") and not fused("TPU v9")
    assert not fused("TPU v5 lite", dtype="float16")
    assert not fused("TPU v5 lite", inner_dim=10, inner_num_heads=2, word_size=16)  # one word of 10 channels
    assert not fused("TPU v5 lite", mlp_ratio=0.5)  # 12 hidden channels
    assert not fused("TPU v5 lite", tnt_blocks=())


def test_where_auto_does_without_the_kernel_on_a_tpu_the_log_says_why(monkeypatch):
    said = []
    monkeypatch.setattr(implementation.logging, "warning", lambda *words: said.append(words[0] % words[1:]))
    implementation._say_once.cache_clear()
    for kind in ("TPU v4", "TPU v4", "TPU v5 lite", "cpu"):
        tnt_jax.create_model("tnt_s_patch16_224", device_kind=kind).forms()
    assert len(said) == 1 and said[0].endswith("a TPU v5e, v5p or v6e, and this is TPU v4")


@pytest.mark.parametrize(
    ("changes", "words"), [({"mlp_ratio": 2.0}, "dense1/kernel is"), ({"qkv_bias": True}, "qkv_bias")]
)
@pytest.mark.parametrize("scan", [False, True])
def test_the_kernel_takes_the_parameters_of_its_own_block_alone(changes, words, scan):
    other = random_variables(small_model(**SIZES, **changes))
    model = small_model(**SIZES, **KERNEL, scan=scan)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(model.apply, other, images())


def test_the_default_device_decides_where_none_is_named():
    assert implementation.default_device_kind() == jax.devices()[0].device_kind
    with jax.default_device(jax.devices("cpu")[1]):
        assert implementation.default_device_kind() == "cpu"
    with jax.default_device("cpu"):
        assert implementation.default_device_kind() == "cpu"


@pytest.mark.parametrize("name", ["tnt_ti_patch16_224", "tnt_b_patch16_224"])
def test_a_training_step_with_the_kernel_lowers_for_a_tpu(name):
    """Mosaic's own checks, without libtpu: shapes, layouts and operations that a TPU does not have fail here."""
    model = tnt_jax.create_model(name, depth=1, device_kind="TPU v5 lite", dtype="bfloat16", drop_path_rate=0.1)
    image = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def loss(values, image):
        return model.apply(values, image, train=True, rngs={"dropout": jax.random.key(0)}).sum()

    text = jax.jit(jax.grad(loss)).trace(variables, image).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 2  # forward and backward
