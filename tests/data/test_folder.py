"""Real-world image folders: what becomes a class, what is read, and what is reported about the rest."""

import io
import itertools
import os
import socket

import numpy as np
import pytest
from PIL import Image

from tests.data import odd_images
from tests.data.test_decoding import with_orientation
from tnt_jax.data import batches, decoding, folder, resident, sources


def fill(root, counts):
    """Writes small JPEGs; counts: {"train/cat": 3} puts three into train/cat."""
    for place, count in counts.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / place / f"{number}.jpg").write_bytes(odd_images.noise(number))


@pytest.fixture
def plain(tmp_path):
    fill(tmp_path, {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 2})
    return tmp_path


@pytest.fixture
def opened(settings_for):
    """Returns a function: folder and changed settings -> the opened data set."""
    return lambda root, **changes: sources.open_dataset(settings_for("folder", root, **changes))


def labels(dataset, split):
    """Returns the class names of a split's images, sorted."""
    source = dataset.open_split(split)
    return sorted(dataset.class_names[source[number]["label"]] for number in range(len(source)))


def test_the_start_says_what_is_there(opened, plain):
    (line,) = opened(plain).found
    assert line == f"folder {plain}: train 5 images, test 3 images; 2 classes: cat 4, dog 4"


def test_the_same_images_elsewhere_are_the_same_data_set_and_others_are_not(opened, plain, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("copy")
    fill(elsewhere, {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 2})
    assert opened(elsewhere).identity() == opened(plain).identity()
    renamed = tmp_path_factory.mktemp("renamed")
    fill(renamed, {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 2})
    (renamed / "test/dog/1.jpg").rename(renamed / "test/dog/2.jpg")
    assert opened(renamed).splits == opened(plain).splits and opened(renamed).identity() != opened(plain).identity()


def test_a_long_list_of_classes_is_shortened(opened, tmp_path):
    fill(tmp_path, {f"{split}/c{number}": 1 for split in ("train", "test") for number in range(9)})
    assert opened(tmp_path).found[0].endswith("9 classes: c0 2, c1 2, c2 2, c3 2, c4 2 and 4 more")


def test_hidden_names_are_skipped(opened, plain):
    fill(plain, {"train/.ipynb_checkpoints": 2, "train/cat/.ipynb_checkpoints": 1, ".git/cat": 1})
    (plain / "train/cat/._0.jpg").write_bytes(b"resource fork")
    (plain / "train/.DS_Store").write_bytes(b"")
    dataset = opened(plain)
    assert dataset.class_names == ("cat", "dog") and dataset.splits == {"test": 3, "train": 5}
    assert dataset.found[1:] == ("Note: not read: 4 hidden",)


def test_folders_beside_the_splits_are_no_classes_and_no_splits_in_use(opened, plain):
    fill(plain, {"annotations/xmls": 1, "raw/zebra": 2})
    dataset = opened(plain)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.found[1:] == ("Note: folders that are not a split in use: annotations, raw",)


def test_a_class_without_a_training_image_is_left_out_by_name(opened, plain):
    fill(plain, {"train/empty": 0, "test/zebra": 2})
    dataset = opened(plain)
    assert dataset.class_names == ("cat", "dog") and labels(dataset, "test") == ["cat", "dog", "dog"]
    assert "Note: classes left out, without a training image: empty (0 images), zebra (2 images)" in dataset.found


def test_a_class_that_only_training_has_is_named(opened, plain):
    fill(plain, {"train/fox": 1})
    dataset = opened(plain)
    assert dataset.class_names == ("cat", "dog", "fox")
    assert "Note: classes without an image in test: fox" in dataset.found


def test_classes_come_from_the_splits_in_use(opened, plain):
    fill(plain, {"extra/ant": 2, "extra/cat": 1})
    assert opened(plain).class_names == ("cat", "dog")
    both = opened(plain, train_split="train[:80%]+extra")
    assert both.class_names == ("ant", "cat", "dog") and both.num_examples("train[:80%]+extra") == 7
    assert opened(plain, train_split="gone").class_names == ("cat", "dog")  # evaluation only: its classes
    with pytest.raises(ValueError, match=r"no split 'gone'.* has the splits extra, test \(3\), train"):
        opened(plain, train_split="gone").num_examples("gone")


@pytest.mark.parametrize("where", ["train/cat", "test/cat"])
def test_a_single_class_is_refused_with_the_reason(opened, tmp_path, where):
    fill(tmp_path, {where: 3})
    with pytest.raises(ValueError, match=r"has a single class, 'cat': there is nothing to classify"):
        opened(tmp_path)


def test_images_in_folders_below_a_class_are_that_classs(opened, plain):
    fill(plain, {"train/cat/kittens/white": 2})
    dataset = opened(plain)
    assert dataset.splits["train"] == 7 and labels(dataset, "train") == ["cat"] * 5 + ["dog"] * 2
    assert "kittens/white/1.jpg" in str([dataset.open_split("train").where(number) for number in range(7)])


def test_every_ending_is_read_in_any_case_and_others_are_counted(opened, plain):
    for name in ("a.npy", "B.NPY"):
        np.save(array := io.BytesIO(), np.full((7, 9, 3), 200, np.uint8))
        (plain / "train/cat" / name).write_bytes(array.getvalue())
    for suffix in folder.SUFFIXES[:-1]:
        kind = {".jfif": "JPEG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
        Image.new("RGB", (9, 7), (200, 0, 0)).save(plain / "train/cat" / f"a{suffix}", kind)
        Image.new("RGB", (9, 7), (200, 0, 0)).save(plain / "train/cat" / f"B{suffix.upper()}", kind)
    for name in ("a.heic", "b.HEIC", "notes.txt", "LICENSE"):
        (plain / "train/dog" / name).write_bytes(b"other")
    (plain / "train/loose.jpg").write_bytes(b"")
    dataset = opened(plain)
    assert dataset.splits["train"] == 5 + 2 * len(folder.SUFFIXES)
    assert dataset.found[1] == "Note: not read: 2 .heic, 1 without ending, 1 .txt, 1 outside of a class folder"
    source = dataset.open_split("train")
    read = [decoding.decode(source[number]["image"]) for number in range(len(source))]
    assert sum(image.size == (9, 7) and image.getpixel((3, 3))[0] > 150 for image in read) == 2 * len(folder.SUFFIXES)


def test_pipes_sockets_devices_and_loops_are_not_waited_for(opened, plain):
    os.mkfifo(plain / "train/cat/pipe.jpg")
    (plain / "train/cat/device.jpg").symlink_to("/dev/zero")
    (plain / "train/cat/itself.jpg").symlink_to("itself.jpg")
    (plain / "train/cat/gone.jpg").symlink_to("nowhere.jpg")
    (plain / "train/cat/round").symlink_to(plain / "train")
    (plain / "train/cat/linked.jpg").symlink_to(plain / "train/dog/0.jpg")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(os.path.relpath(plain / "train/cat/socket.jpg"))
        dataset = opened(plain)
    assert dataset.splits["train"] == 6
    assert dataset.found[1] == "Note: not read: 5 no regular file, 1 links to a folder above"


def test_names_that_are_no_utf8_can_be_read_and_named(opened, plain):
    with open(os.fsencode(plain) + b"/train/cat/caf\xe9\n.jpg", "wb") as file:
        file.write(b"no image")
    os.mkdir(os.fsencode(plain) + b"/train/fox\xff")
    with open(os.fsencode(plain) + b"/train/fox\xff/0.jpg", "wb") as file:
        file.write(odd_images.noise(0))
    dataset = opened(plain)
    source = dataset.open_split("train")
    (named,) = (source.where(number) for number in range(len(source)) if "caf" in source.where(number))
    assert r"caf\udce9\n.jpg" in named and named.encode() and named.isprintable()
    assert r"fox\udcff 1" in dataset.found[0] and dataset.found[0].isprintable()


def test_a_file_of_classes_sets_their_order(opened, plain):
    (plain / "classes.txt").write_text("dog\n\n cat \nzebra\n")
    dataset = opened(plain)
    assert dataset.class_names == ("dog", "cat", "zebra") and labels(dataset, "train") == ["cat"] * 3 + ["dog"] * 2
    assert "Note: classes without an image in train: zebra" in dataset.found


@pytest.mark.parametrize(
    ("text", "message"),
    [("dog\n", "lacks classes with images: cat"), ("dog\ncat\ndog", "twice"), ("dog\0", "is not UTF-8 text")],
)
def test_a_file_of_classes_that_does_not_fit_is_refused(opened, plain, text, message):
    (plain / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"classes\.txt .*{message}"):
        opened(plain)


def test_names_are_the_same_however_their_accents_are_written(opened, tmp_path):
    """macOS separates a letter and its accent, most systems use one character; editors may add a byte order mark."""
    fill(tmp_path, {"train/cafe\u0301": 2, "train/bar": 2, "test/caf\u00e9": 1, "test/bar": 1})
    assert opened(tmp_path).class_names == ("bar", "caf\u00e9") and len(opened(tmp_path).found) == 1
    (tmp_path / "classes.txt").write_text("\ufeffcaf\u00e9\r\nbar\r\n")
    assert opened(tmp_path, synthetic_examples=7).class_names == ("caf\u00e9", "bar")


def test_a_single_class_with_images_is_refused_whatever_the_file_of_classes_says(opened, tmp_path):
    fill(tmp_path, {"train/cat": 2, "test/cat": 1})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match="a single class, 'cat'"):
        opened(tmp_path)


def test_where_no_split_has_images_the_folders_that_are_there_are_named(opened, tmp_path):
    fill(tmp_path, {"Train/cat": 2, "val/cat": 1})
    with pytest.raises(FileNotFoundError, match="holds the folders Train, val.*data.train_split"):
        opened(tmp_path)


@pytest.mark.parametrize("on_device", [False, True])
def test_exif_orientation_is_applied_by_one_key(settings_for, tmp_path, on_device):
    """A phone image with tag 6: stored as 16 x 24, shown as 24 x 16 with a red stripe on the left."""
    for name in ("a", "b"):
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.jpg").write_bytes(with_orientation(6))
    for applied in (True, False):
        settings = settings_for(
            "folder", tmp_path, exif_orientation=applied, on_device=on_device, eval_crop_fraction=1.0
        )
        if on_device:
            image = resident.load(settings, (16, 16))[0][0]
            assert image.shape == ((16, 24, 3) if applied else (24, 16, 3))
        else:
            place = {"batch_size": 2, "image_size": (16, 24), "local_devices": 1}
            image = next(batches.eval_batches(settings, **place))["image"][0, 0]
            assert (image[8, 1, 0] > 200 and image[2, 20, 0] < 130) == applied
            np.testing.assert_array_equal(
                sources.read_example(settings, "test", 0).shape, (16, 24, 3) if applied else (24, 16, 3)
            )


def test_a_damaged_image_is_named_where_one_is_read(settings_for, tmp_path):
    for split, name in itertools.product(("train", "test"), "ab"):
        (tmp_path / split / name).mkdir(parents=True)
        (tmp_path / split / name / "0.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(ValueError, match=r"/0\.jpg.* cannot be decoded"):
        sources.read_example(settings_for("folder", tmp_path), "test", 0)
