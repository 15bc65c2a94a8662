"""Classes are compared by name: evaluated, resumed, and started from."""

import json

import numpy as np
import pytest

from tests.training.helpers import TinyFeed, experiment, tiny_config
from tnt_jax.training import loop, setup
from tnt_jax.training.classes import check_classes, label_map, relabelled

KNOWN = ("cat", "dog", "fox")


@pytest.fixture
def run(tmp_path):
    """A workdir that looks as if a run of KNOWN had saved step 5."""
    (tmp_path / "run/checkpoints/5").mkdir(parents=True)
    (tmp_path / "run/classes.json").write_text(json.dumps(KNOWN))
    return tmp_path / "run"


@pytest.mark.parametrize("names", [KNOWN, None, ()])
def test_equal_or_unknown_names_change_nothing(run, names):
    assert label_map(KNOWN, names, "set") is None and label_map(names, KNOWN, "set") is None
    check_classes(experiment(), run, 3, names, evaluates=False)
    check_classes(experiment(pretrained=str(run)), run / "new", 3, names, evaluates=False)


def test_labels_are_mapped_by_name():
    mapping = label_map(KNOWN, ("fox", "cat"), "set")
    assert mapping.tolist() == [2, 0]
    batch = {"label": np.array([[0, 1], [1, 0]], np.int32), "mask": np.ones((2, 2)), "image": "pixels"}
    (found,) = relabelled(iter([batch]), mapping)
    assert found["label"].tolist() == [[2, 0], [0, 2]] and found["label"].dtype == np.int32
    assert found["image"] == "pixels" and batch["label"][0, 0] == 0  # the batch itself stays, for a set on the device
    assert next(relabelled(iter([batch]), None)) is batch


def test_evaluating_classes_that_the_run_does_not_know_is_an_error_that_names_them(run):
    assert check_classes(experiment(), run, 2, ("dog", "cat"), evaluates=True).tolist() == [1, 0]
    with pytest.raises(ValueError, match="synthetic has classes that the model does not know: 'zebra', 'emu'. It"):
        check_classes(experiment(data__name="synthetic"), run, 4, ("dog", "fox", "zebra", "emu"), evaluates=True)
    with pytest.raises(ValueError, match="'cat' more than once"):
        label_map(("cat", "dog", "cat"), ("dog", "cat"), "set")
    other = experiment(pretrained=str(run / "checkpoints/5"))  # another run's weights, in a workdir without any
    assert check_classes(other, run / "new", 2, ("dog", "cat"), evaluates=True).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("arctic_fox", "cat", "dog"), "'fox' there alone and 'arctic_fox' in the data set alone"),
        (("cat", "dog", "fox", "owl"), "others now: 'owl' in the data set alone"),
        (("cat", "dog"), "others now: 'fox' there alone"),
        (("dog", "cat", "fox"), "the same in another order, 'cat', 'dog', 'fox' there and 'dog', 'cat', 'fox' now"),
    ],
)
def test_a_run_is_not_resumed_with_another_list(run, names, words):
    with pytest.raises(ValueError, match=f"classes.json has the classes of this run, .*{words}"):
        check_classes(experiment(), run, 3, names, evaluates=False)
    with pytest.raises(ValueError, match=r"--config\.pretrained_new_head=True"):
        check_classes(experiment(pretrained=str(run)), run / "new", 3, names, evaluates=False)
    check_classes(experiment(pretrained=str(run), pretrained_new_head=True), run / "new", 3, names, evaluates=False)


def test_training_on_keeps_the_list_of_what_was_trained(run):
    """Also where the data set has no names any more: the labels are the old ones."""
    config = tiny_config()
    feed = TinyFeed(config)
    feed.class_names = None
    fresh = setup.prepare(config, run.parent / "fresh", feed)
    with loop._enter_workdir(fresh):
        pass
    assert json.loads((fresh.workdir / "classes.json").read_text()) is None
    (run / "config.json").write_text((fresh.workdir / "config.json").read_text())
    with loop._enter_workdir(setup.prepare(config, run, feed)):
        pass
    assert json.loads((run / "classes.json").read_text()) == list(KNOWN)


def test_an_evaluation_counts_by_name(run):
    """The run's number of classes is taken, and labels of a set with fewer go where their names are."""
    config = tiny_config(model__num_classes=None)
    feed = TinyFeed(config)
    feed.class_names, feed.num_classes = ("fox", "cat"), 2
    config.model.num_classes = 3
    trained = setup.resolved_experiment(experiment(model__num_classes=3), 3)
    (run / "config.json").write_text(json.dumps(setup.as_dict(trained)))
    prepared = setup.prepare_evaluation(tiny_config(), run, feed)
    assert prepared.label_map.tolist() == [2, 0] and prepared.model.num_classes == 3


@pytest.mark.parametrize(("known", "names"), [(None, ("fox", "cat")), (KNOWN, None)])
def test_fewer_classes_without_names_are_not_counted_by_number(run, known, names):
    (run / "classes.json").write_text(json.dumps(known))
    settings = experiment(model__num_classes=3)
    with pytest.raises(ValueError, match="has 2 classes and the model 3, and which of them these are is not known"):
        check_classes(settings, run, 2, names, evaluates=True)
    assert check_classes(settings, run, 3, names, evaluates=True) is None  # as many: there is nothing else to go by
    (run / "classes.json").write_text("null")
    assert check_classes(settings, run, 2, None, evaluates=True) is None  # the run's own set, with a larger head
