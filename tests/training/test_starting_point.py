"""What a run inherits from the run whose weights it starts from; classes are matched by name."""

import json

import numpy as np
import pytest

from tests.training.helpers import TinyPipeline, checked_config, resolved, tiny_config
from tnt_jax.training import loop, setup, starting_point
from tnt_jax.training.starting_point import check_classes, label_map, relabelled

OPEN = dict.fromkeys(
    ("patch_size", "word_size", "inner_dim", "outer_dim", "inner_num_heads", "outer_num_heads", "depth", "tnt_blocks")
)
OPEN = {f"model__{key}": value for key, value in OPEN.items()}


@pytest.fixture
def source(tmp_path):
    """A workdir with only the config.json of a run of two blocks, one with an inner path."""
    (tmp_path / "source").mkdir()
    trained = resolved(checked_config(model__depth=2, model__tnt_blocks=(2,), model__num_classes=7), 7)
    (tmp_path / "source/config.json").write_text(json.dumps(setup.as_dict(trained)))
    return tmp_path / "source"


def taken(source, workdir, evaluates=False, **changes):
    return starting_point.take_sizes(checked_config(pretrained=str(source), **OPEN | changes), workdir, evaluates)


def test_sizes_that_are_open_are_those_of_the_run_and_said(source, tmp_path):
    found, notes = taken(source, tmp_path / "new")
    model = found.model
    assert (model.patch_size, model.word_size, model.depth, model.tnt_blocks) == (4, 2, 2, (2,))
    assert model.num_classes is None  # follows from the new data set
    (note,) = notes
    assert note.startswith(f"model sizes that the config leaves open are taken from {source}: patch_size=4, ")
    assert "depth=2, tnt_blocks=(2,)" in note and "mlp_ratio" not in note  # the same in all variants
    (_, note) = taken(source, tmp_path / "new", model__image_size=16)[1]
    assert note == "the weights were trained at image size 8, but config.model.image_size is 16."


def test_sizes_that_are_given_stay(source, tmp_path):
    found, (note,) = taken(source, tmp_path / "new", model__depth=1, model__tnt_blocks=(1,))
    assert (found.model.depth, found.model.tnt_blocks, found.model.patch_size) == (1, (1,), 4)
    assert "depth" not in note


def test_another_named_model_takes_nothing(source, tmp_path):
    """It keeps its own sizes; the error that follows says how to take the run's."""
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
    assert taken("", workdir)[0].model.depth is None  # another source is another run; check_same_run reports it
    assert taken("", workdir, evaluates=True)[0].model.num_classes == 7


@pytest.mark.parametrize("content", ["{}", '{"model": 3}', '{"model": {"name": 1}}'])
def test_a_config_that_holds_no_sizes_gives_none(source, tmp_path, content):
    (source / "config.json").write_text(content)
    assert taken(source, tmp_path / "new") == (checked_config(pretrained=str(source), **OPEN), ())


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
    started = checked_config(pretrained=str(source / "checkpoints" / "5"))
    (source / "checkpoints" / "5").mkdir(parents=True)
    note = starting_point.normalisation_note(started)
    assert '--config.data.std="(0.25, 0.25, 0.25)"' in note and "data.mean" not in note
    same = checked_config(pretrained=started.pretrained, data__std=(0.25, 0.25, 0.25))
    assert starting_point.normalisation_note(same) is None
    assert starting_point.normalisation_note(checked_config(pretrained="hf-hub:timm/tnt_s_patch16_224.in1k")) is None
    assert starting_point.normalisation_note(checked_config()) is None
    deit = {"pretrained": "hf-hub:timm/deit_tiny_patch16_224.fb_in1k", "model__name": "deit_tiny_patch16_224"}
    note = starting_point.normalisation_note(checked_config(**deit))
    assert '--config.data.mean="(0.485, 0.456, 0.406)" and --config.data.std="(0.229, 0.224, 0.225)"' in note


def test_one_number_for_all_channels_is_as_good_as_one_each_and_other_channels_are_not_compared(source):
    started = {"pretrained": str(source), "data__mean": (0.5,)}
    assert starting_point.normalisation_note(checked_config(**started)) is None
    grey = {"model__in_channels": 1, "data__std": (0.25,), "data__randaugment": "", "data__color_jitter": 0.0}
    assert starting_point.normalisation_note(checked_config(**started, **grey)) is None
    assert "data.mean" in starting_point.normalisation_note(checked_config(pretrained=str(source), data__mean=(0.4,)))


KNOWN = ("cat", "dog", "fox")


@pytest.fixture
def run(tmp_path):
    """A workdir that looks as if a run with the classes KNOWN had saved step 5."""
    (tmp_path / "run/checkpoints/5").mkdir(parents=True)
    (tmp_path / "run/classes.json").write_text(json.dumps(KNOWN))
    return tmp_path / "run"


@pytest.mark.parametrize("names", [KNOWN, None, ()])
def test_equal_or_unknown_names_change_nothing(run, names):
    assert label_map(KNOWN, names, "set") is None and label_map(names, KNOWN, "set") is None
    check_classes(checked_config(), run, 3, names, evaluates=False)
    check_classes(checked_config(pretrained=str(run)), run / "new", 3, names, evaluates=False)


def test_labels_are_mapped_by_name():
    mapping = label_map(KNOWN, ("fox", "cat"), "set")
    assert mapping.tolist() == [2, 0]
    batch = {"label": np.array([[0, 1], [1, 0]], np.int32), "mask": np.ones((2, 2)), "image": "pixels"}
    found = relabelled(batch, mapping)
    assert found["label"].tolist() == [[2, 0], [0, 2]] and found["label"].dtype == np.int32
    assert found["image"] == "pixels" and batch["label"][0, 0] == 0  # the batch is unchanged, for a set on the device
    assert relabelled(batch, None) is batch


def test_names_are_the_same_however_their_accents_are_stored(run):
    """macOS stores accents decomposed, and a copied folder looks the same."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert label_map(("bar", composed), ("bar", apart), "set") is None
    assert label_map(("bar", composed), (apart, "bar"), "set").tolist() == [1, 0]
    (run / "classes.json").write_text(json.dumps(["bar", composed]))
    check_classes(checked_config(), run, 2, ("bar", apart), evaluates=False)


def test_more_names_than_the_model_has_classes_are_an_error_that_names_the_file(run):
    (run / "config.json").write_text(json.dumps({"model": {"num_classes": 2}}))
    with pytest.raises(ValueError, match=r"classes\.json names 3 classes, and the run's model has 2"):
        check_classes(checked_config(), run, 3, KNOWN, evaluates=True)


def test_evaluating_classes_that_the_run_does_not_know_is_an_error_that_names_them(run):
    assert check_classes(checked_config(), run, 2, ("dog", "cat"), evaluates=True).tolist() == [1, 0]
    with pytest.raises(ValueError, match="synthetic has classes that the model does not know: 'zebra', 'emu'. It"):
        check_classes(checked_config(data__name="synthetic"), run, 4, ("dog", "fox", "zebra", "emu"), evaluates=True)
    with pytest.raises(ValueError, match="'cat' more than once"):
        label_map(("cat", "dog", "cat"), ("dog", "cat"), "set")
    other = checked_config(pretrained=str(run / "checkpoints/5"))  # another run's weights, in a new workdir
    assert check_classes(other, run / "new", 2, ("dog", "cat"), evaluates=True).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("arctic_fox", "cat", "dog"), "'fox' only there and 'arctic_fox' only in the data set"),
        (("cat", "dog", "fox", "owl"), "now has others: 'owl' only in the data set"),
        (("cat", "dog"), "now has others: 'fox' only there"),
        (("dog", "cat", "fox"), "the same in another order, 'cat', 'dog', 'fox' there and 'dog', 'cat', 'fox' now"),
    ],
)
def test_a_run_is_not_resumed_with_another_list(run, names, words):
    with pytest.raises(ValueError, match=f"classes.json has the classes of this run, .*{words}"):
        check_classes(checked_config(), run, 3, names, evaluates=False)
    with pytest.raises(ValueError, match=r"--config\.pretrained_new_head=True"):
        check_classes(checked_config(pretrained=str(run)), run / "new", 3, names, evaluates=False)
    check_classes(checked_config(pretrained=str(run), pretrained_new_head=True), run / "new", 3, names, evaluates=False)


def test_training_on_keeps_the_list_of_what_was_trained(run):
    """Also if the data set no longer has names: its labels are the old ones."""
    config = tiny_config()
    pipeline = TinyPipeline(config)
    pipeline.class_names = None
    fresh = setup.prepare(config, run.parent / "fresh", pipeline)
    with loop.enter_workdir(fresh):
        pass
    assert json.loads((fresh.workdir / "classes.json").read_text()) is None
    (run / "config.json").write_text((fresh.workdir / "config.json").read_text())
    with loop.enter_workdir(setup.prepare(config, run, pipeline)):
        pass
    assert json.loads((run / "classes.json").read_text()) == list(KNOWN)


def test_an_evaluation_counts_by_name(run):
    """An evaluation takes the run's number of classes and maps the labels of a smaller set by name."""
    config = tiny_config(model__num_classes=None)
    pipeline = TinyPipeline(config)
    pipeline.class_names, pipeline.num_classes = ("fox", "cat"), 2
    config.model.num_classes = 3
    trained = resolved(checked_config(model__num_classes=3), 3)
    (run / "config.json").write_text(json.dumps(setup.as_dict(trained)))
    prepared = setup.prepare_evaluation(tiny_config(), run, pipeline)
    assert prepared.label_map.tolist() == [2, 0] and prepared.model.num_classes == 3


@pytest.mark.parametrize(("known", "names"), [(None, ("fox", "cat")), (KNOWN, None)])
def test_fewer_classes_without_names_are_not_counted_by_number(run, known, names):
    (run / "classes.json").write_text(json.dumps(known))
    settings = checked_config(model__num_classes=3)
    with pytest.raises(ValueError, match="has 2 classes and the model 3, and they cannot be matched"):
        check_classes(settings, run, 2, names, evaluates=True)
    assert check_classes(settings, run, 3, names, evaluates=True) is None  # same number: there is nothing else to go by
    (run / "classes.json").write_text("null")
    assert check_classes(settings, run, 2, None, evaluates=True) is None  # the run's own set, with a larger head
