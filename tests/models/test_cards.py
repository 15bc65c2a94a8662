"""Model cards, field by field against timm's pretrained_cfg and results tables (fixtures/make_model_cards.py)."""

import dataclasses
import json
import pathlib

import pytest

import tnt_jax
from tnt_jax.models import cards
from tnt_jax.models.complexity import count_parts

TIMM = json.loads((pathlib.Path(__file__).parents[1] / "fixtures/model_cards.json").read_text())


@pytest.mark.parametrize("name", TIMM)
def test_a_card_is_timms(name):
    info, timm = tnt_jax.model_info(name), TIMM[name]
    cfg = timm["pretrained_cfg"]
    assert info.hub_name == cfg["hf_hub_id"]
    assert [3, *info.image_size] == cfg["input_size"] and cfg["num_classes"] == 1000
    assert list(info.mean) == cfg["mean"] and list(info.std) == cfg["std"]
    assert info.eval_crop_fraction == cfg["crop_pct"] and info.eval_interpolation == cfg["interpolation"]
    assert info.parameters == timm["parameters"]
    ours = {cards.RESULTS[name]: [*accuracy] for name, accuracy in info.accuracy.items()}
    assert ours == timm["results"]
    assert info.accuracy["imagenet2012"].top1 == timm["results"]["results-imagenet"][0]


@pytest.mark.parametrize("name", tnt_jax.list_models())
def test_sizes_and_counts_are_the_models(name):
    info, model = tnt_jax.model_info(name), tnt_jax.create_model(name)
    parts = count_parts(model)
    for field in ("parameters", "multiply_adds"):
        assert getattr(info, field) == sum(getattr(part, field) for part in parts), field
    words = ("word_size", "inner_dim", "inner_num_heads")
    for field in ("patch_size", "outer_dim", "outer_num_heads", "depth", *words):
        expected = getattr(model, field) if model.inner_blocks or field not in words else None
        assert getattr(info, field) == expected, field
    assert (info.source is None) == (info.hub_name is None) == (not info.accuracy) == (name not in TIMM)


def test_a_card_does_not_change_and_names_are_close():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tnt_jax.model_info("tnt_s_patch16_224").mean = (0, 0, 0)
    with pytest.raises(ValueError, match="there is no model 'tnt_s_patch16'; did you mean 'tnt_s_patch16_224'"):
        tnt_jax.model_info("tnt_s_patch16")
