"""What a run takes over from the one whose weights it starts from."""

import json

import pytest

from tests.training.helpers import experiment
from tnt_jax.training import setup, starting_point

OPEN = dict.fromkeys(
    ("patch_size", "word_size", "inner_dim", "outer_dim", "inner_num_heads", "outer_num_heads", "depth", "tnt_blocks")
)
OPEN = {f"model__{key}": value for key, value in OPEN.items()}


@pytest.fixture
def source(tmp_path):
    """The config.json of a run of two blocks, one with an inner path."""
    (tmp_path / "source").mkdir()
    trained = setup.resolved_experiment(experiment(model__depth=2, model__tnt_blocks=(2,), model__num_classes=7), 7)
    (tmp_path / "source/config.json").write_text(json.dumps(setup.as_dict(trained)))
    return tmp_path / "source"


def taken(source, workdir, evaluates=False, **changes):
    return starting_point.take_sizes(experiment(pretrained=str(source), **OPEN | changes), workdir, evaluates)


def test_sizes_that_are_open_are_those_of_the_run_and_said(source, tmp_path):
    found, notes = taken(source, tmp_path / "new")
    model = found.model
    assert (model.patch_size, model.word_size, model.depth, model.tnt_blocks) == (4, 2, 2, (2,))
    assert model.num_classes is None  # of the new data set
    (note,) = notes
    assert note.startswith(f"sizes of the model that the config leaves open are those of {source}: patch_size=4, ")
    assert "depth=2, tnt_blocks=(2,)" in note and "mlp_ratio" not in note  # which is every variant's
    (_, note) = taken(source, tmp_path / "new", model__image_size=16)[1]
    assert note == "the weights were trained on images of 8 pixels, and config.model.image_size is 16."


def test_sizes_that_are_given_stay(source, tmp_path):
    found, (note,) = taken(source, tmp_path / "new", model__depth=1, model__tnt_blocks=(1,))
    assert (found.model.depth, found.model.tnt_blocks, found.model.patch_size) == (1, (1,), 4)
    assert "depth" not in note


def test_another_named_model_takes_nothing(source, tmp_path):
    """Its sizes are its own; the error that follows says how to take the run's."""
    found, notes = taken(source, tmp_path / "new", model__name="tnt_b_patch16_224")
    assert found.model.depth is None and notes == ()
    hint = starting_point._name_hint(str(source), found)
    assert "Its model is tnt_s_patch16_224: --config.model.name=tnt_s_patch16_224 takes" in hint


def test_a_resumed_run_keeps_the_sizes_when_its_source_is_gone(source, tmp_path):
    workdir = tmp_path / "run"
    (workdir / "checkpoints/5").mkdir(parents=True)
    config = json.loads((source / "config.json").read_text()) | {"pretrained": "gone"}
    (workdir / "config.json").write_text(json.dumps(config))
    found, notes = taken("gone", workdir)
    assert found.model.depth == 2 and notes == ()
    assert taken("", workdir)[0].model.depth is None  # another start is another run, which check_same_run says
    assert taken("", workdir, evaluates=True)[0].model.num_classes == 7


@pytest.mark.parametrize("content", ["{}", '{"model": 3}', '{"model": {"name": 1}}'])
def test_a_config_that_holds_no_sizes_gives_none(source, tmp_path, content):
    (source / "config.json").write_text(content)
    assert taken(source, tmp_path / "new") == (experiment(pretrained=str(source), **OPEN), ())


def test_a_source_whose_config_is_none_is_named(source, tmp_path):
    (source / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"source/config\.json holds no configuration"):
        taken(source, tmp_path / "new")


def test_a_hub_that_cannot_be_reached_ends_before_anything_else(monkeypatch):
    monkeypatch.setattr("tnt_jax.pretrained.sources.why_unreachable", lambda: "no network")
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    with pytest.raises(ValueError, match=r"config\.pretrained=hf-hub:tnt_s: hf-hub:tnt_s: give hf-hub:OWNER/NAME"):
        starting_point.check_pretrained("hf-hub:tnt_s")
    with pytest.raises(ValueError, match=r"config\.pretrained=hf-hub:timm/none: .*cannot be reached \(no network\)"):
        starting_point.check_pretrained("hf-hub:timm/none")


def test_weights_of_a_run_whose_images_were_normalised_otherwise_are_noted(source):
    config = json.loads((source / "config.json").read_text())
    config["data"]["std"] = [0.25, 0.25, 0.25]
    (source / "config.json").write_text(json.dumps(config))
    started = experiment(pretrained=str(source / "checkpoints" / "5"))
    (source / "checkpoints" / "5").mkdir(parents=True)
    note = starting_point.normalisation_note(started)
    assert '--config.data.std="(0.25, 0.25, 0.25)"' in note and "data.mean" not in note
    same = experiment(pretrained=started.pretrained, data__std=(0.25, 0.25, 0.25))
    assert starting_point.normalisation_note(same) is None
    assert starting_point.normalisation_note(experiment(pretrained="hf-hub:timm/tnt_s_patch16_224.in1k")) is None
    assert starting_point.normalisation_note(experiment()) is None
