import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.pretrained import published
from tnt_jax.models.complexity import parameter_shapes
from tnt_jax.pretrained import names

SCHEME_OF = {
    "tnt_tiny": "timm",
    "tnt_tiny_qkv_bias": "timm",
    "tnt_tiny_legacy": "timm",
    "official_tiny": "official",
    "deit_tiny_depth2": "vit",
}
sizes = st.integers(1, 4)


@pytest.mark.parametrize("name", SCHEME_OF)
def test_names_and_shapes_are_those_of_the_pytorch_file(name):
    scheme = SCHEME_OF[name]
    file = {key: value.shape for key, value in load_file(published.weights_file(name)).items()}
    assert names.detect_scheme(set(file)) == scheme
    file.pop("outer_tokens", None)
    entries = names.entries_for(parameter_shapes(published.model(name)), scheme)
    assert {entry.name: entry.file_shape for entry in entries} == file


@pytest.mark.parametrize(
    "name, scheme",
    [
        ("tnt_tiny_qkv_bias", "timm"),
        ("tnt_tiny_legacy", "timm"),
        ("official_tiny", "official"),
        ("deit_tiny_depth2", "vit"),
        ("official_tiny", "own"),
    ],
)
def test_a_file_name_leads_back_to_its_path(name, scheme):
    shapes = parameter_shapes(published.model(name))
    for path, shape in shapes.items():
        expected = tuple("query_key" if part == "value" and scheme == "vit" else part for part in path)
        entry = names.Entry(path, shape, names.file_name(path, scheme), scheme)
        assert names.our_path(entry.name, scheme) == expected
        if not entry.fused and path != ("word_position",):
            assert names.our_shape(path, entry.file_shape, scheme) == shape


@pytest.mark.parametrize("name", ["blocks.0.attn_in.qkv.weight", "patch_pos.weight", "head", "epoch", "blocks.x.proj"])
def test_a_name_that_no_tnt_has_leads_nowhere(name):
    assert names.our_path(name, "timm") is None


def test_schemes_are_told_apart_and_strangers_are_not_guessed():
    assert names.detect_scheme({"module_of_ours", "layer1.0.conv1.weight"}) is None
    assert names.detect_scheme({"blocks.0.outer_attn.qk.weight"}) == "official"
    assert names.detect_scheme({"blocks.0.attn_out.qk.weight"}) == "timm"
    assert names.detect_scheme({"blocks.0.attn.qkv.weight"}) == "vit"


def test_a_parameter_without_a_name_is_an_error():
    with pytest.raises(ValueError, match="timm naming scheme has no name for patch_embedding/kernel"):
        names.file_name(("patch_embedding", "kernel"), "timm")


@pytest.mark.parametrize(
    "path", ["word_embedding/scale", "block_1/inner/norm1/gain", "block_1/inner/norm1/kernel", "block_1/inner/scale1"]
)
def test_a_new_parameter_of_a_known_module_does_not_take_the_name_of_another(path):
    with pytest.raises(ValueError, match=f"no name for {path}; .*names.py"):
        names.file_name(tuple(path.split("/")), "timm")


def _array(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@settings(deadline=None)
@given(sizes, sizes, sizes, sizes)
def test_layouts_are_pytorchs_and_lose_nothing(a, b, c, d):
    dense, convolution, words = _array(a, b), _array(a, b, c, d), _array(a * a, b)
    file = names.to_file(dense, ("head", "kernel"), "timm")
    assert file.shape == (b, a) and file[b - 1, a // 2] == dense[a // 2, b - 1]
    file = names.to_file(convolution, ("word_embedding", "kernel"), "timm")
    assert file.shape == (d, c, a, b)  # [out, in, h, w]
    assert file[d - 1, c // 2, a // 2, b - 1] == convolution[a // 2, b - 1, c // 2, d - 1]
    file = names.to_file(words, ("word_position",), "timm")
    assert file.shape == (1, b, a, a)  # row by row, as the convolution's output
    assert file[0, b - 1, a - 1, a // 2] == words[(a - 1) * a + a // 2, b - 1]
    assert names.to_file(words, ("word_position",), "official").shape == (1, a * a, b)
    paths = {("head", "kernel"): dense, ("word_embedding", "kernel"): convolution, ("word_position",): words}
    paths |= {("class_token",): _array(a), ("sentence_position",): _array(a, b), ("norm", "scale"): _array(c)}
    for path, array in paths.items():
        for scheme in ("timm", "official", "own"):
            there_and_back = names.from_file(names.to_file(array, path, scheme), path, scheme)
            np.testing.assert_array_equal(there_and_back, array)


@settings(deadline=None)
@given(st.integers(1, 5), st.booleans())
def test_query_key_and_value_are_the_rows_of_qkv(width, value_first):
    attention = ("block_2", "outer", "attention")
    params = {
        (*attention, "query_key", "kernel"): _array(width, 2 * width),
        (*attention, "value", "kernel"): -1 - _array(width, width),
    }
    ordered = dict(reversed(params.items())) if value_first else params
    arrays = names.to_arrays(ordered, "vit")
    assert list(arrays) == ["blocks.1.attn.qkv.weight"]
    qkv = arrays["blocks.1.attn.qkv.weight"]
    assert qkv.shape == (3 * width, width) and (qkv[: 2 * width] >= 0).all() and (qkv[2 * width :] < 0).all()
    shapes = {path: array.shape for path, array in params.items()}
    for entry in names.entries_for(shapes, "vit"):
        assert entry.file_shape == qkv.shape
        np.testing.assert_array_equal(entry.read(qkv), params[entry.path])
