"""A folder whose labels.csv has several labels per image: what is read, reported and refused."""

import itertools

import numpy as np
import pytest

from tests.data import odd_images
from tnt_jax.data import batches, resident, sources

TRAIN = 'path,labels\na.jpg,cat;dog\n"more/b,1.jpg",traffic light\nc.jpg,\n./d.jpg, dog ;dog\n'
TEST = "path,labels\na.jpg,dog;zebra\n"


@pytest.fixture
def listed(tmp_path):
    """Writes four training images, one with two labels and one with none, one that is not listed, and a test image."""
    for number, place in enumerate(("train/a", "train/more/b,1", "train/c", "train/d", "train/unlisted", "test/a")):
        path = tmp_path / f"{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(odd_images.noise(number))
    (tmp_path / "train/labels.csv").write_text(TRAIN)
    (tmp_path / "test/labels.csv").write_text(TEST)
    return tmp_path


@pytest.fixture
def settings(settings_for):
    return lambda root, **changes: settings_for("folder", root, **changes)


def by_name(dataset, split):
    """Returns {end of an image's path: names of its classes} for a split."""
    source = dataset.open_split(split)
    return {
        source.where(i).rstrip(")").rpartition("/")[2]: [dataset.class_names[label] for label in source[i]["label"]]
        for i in range(len(source))
    }


def test_labels_go_by_path_and_are_separated_by_semicolons(settings, listed):
    dataset = sources.open_dataset(settings(listed))
    assert dataset.several_labels and dataset.class_names == ("cat", "dog", "traffic light")
    assert by_name(dataset, "train") == {
        "a.jpg": ["cat", "dog"],
        "b,1.jpg": ["traffic light"],
        "c.jpg": [],
        "d.jpg": ["dog"],
    }
    assert by_name(dataset, "test") == {"a.jpg": ["dog"]}
    assert dataset.class_counts("train").tolist() == [1, 2, 1]
    assert dataset.found[0].endswith("train 4 images, test 1 images; 3 classes: cat 1, dog 3, traffic light 1")
    assert dataset.found[1:] == (
        "Note: classes left out, without a training image: zebra (1 images)",
        "Note: classes without an image in test: cat, traffic light",
        "Note: images in none of the classes: train 1",
        "Note: not read: 1 not in labels.csv",
    )


def test_another_label_is_another_data_set(settings, listed):
    identity = sources.open_dataset(settings(listed)).identity()
    (listed / "train/labels.csv").write_text(TRAIN.replace("c.jpg,", "c.jpg,cat"))
    sources._open.cache_clear()
    assert sources.open_dataset(settings(listed)).identity() != identity


def test_batches_have_1_for_each_label_and_images_of_no_class_count(settings, listed):
    place = {"batch_size": 4, "image_size": (8, 8), "local_devices": 2}
    (batch,) = itertools.islice(batches.train_batches(settings(listed), seed=0, **place), 1)
    labels = batch["labels"].reshape(-1, 3)[np.argsort(batch["index"].ravel())]
    source = sources.open_dataset(settings(listed)).open_split("train")
    for number, row in enumerate(labels):
        assert np.flatnonzero(row).tolist() == source[number]["label"].tolist()
    assert batch["mask"].all() and labels.dtype == np.uint8
    everything = settings(listed, eval_split="train")
    for count, masked in ((True, 4), (False, 3)):
        (batch,) = batches.eval_batches(everything, count_unlabelled=count, **place)
        assert batch["mask"].sum() == masked


def test_labels_of_a_set_on_the_device_are_the_same(settings, listed):
    given = settings(listed, on_device=True, randaugment="", color_jitter=0.0)
    images, labels = resident.load(given, (8, 8))
    source = sources.open_dataset(given).open_split("train")
    assert [np.flatnonzero(row).tolist() for row in labels] == [source[i]["label"].tolist() for i in range(4)]
    (batch,) = itertools.islice(
        resident.train_batches(labels, copies=1, batch_size=4, seed=0, start_step=0, local_devices=1), 1
    )
    np.testing.assert_array_equal(batch["labels"][0], labels[batch["index"][0]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,classes\na.jpg,cat\n", "first line is not path,labels"),
        ("", "first line is not path,labels"),
        ("path,labels\n", "lists no image"),
        ("path,labels\na.jpg,cat,dog\n", "line 2 is not a path and its labels: a.jpg,cat,dog"),
        ("path,labels\na.jpg,cat\na.jpg,dog\n", "line 3 has a.jpg a second time"),
        ("path,labels\nb.jpg,cat\nc.txt,dog\na.jpg,dog\n", r"lists b.jpg and 1 more, but there is no such image"),
        ("path,labels\n../test/a.jpg,cat\n", "no such image"),
        ('path,labels\n"a.jpg,cat\n', "unexpected end of data"),
        ("path,labels\na.jpg,c\0at\n", "not UTF-8"),
    ],
)
def test_another_form_is_refused_with_the_file_and_the_line(settings, listed, text, words):
    (listed / "train/labels.csv").write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        sources.open_dataset(settings(listed))
    assert str(listed / "train/labels.csv") in str(error.value)


def test_all_splits_have_the_file_or_none(settings, listed):
    (listed / "test/labels.csv").unlink()
    with pytest.raises(ValueError, match="test has none"):
        sources.open_dataset(settings(listed))


def test_a_training_split_has_a_label(settings, listed):
    (listed / "train/labels.csv").write_text("path,labels\na.jpg,\n")
    with pytest.raises(ValueError, match="no image of the training splits has a label"):
        sources.open_dataset(settings(listed))
