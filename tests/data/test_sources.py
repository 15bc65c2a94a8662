import pathlib
import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from tests.data import conftest
from tnt_jax.data import decoding, digits, prepared, sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Writes train with 3 + 4 JPEG files of two classes and one PNG of a third, and val with 2 of one class."""
    root = tmp_path_factory.mktemp("folder")
    for place, count in {"train/cat": 3, "train/dog": 4, "val/dog": 2, "train/ant": 1}.items():
        (root / place).mkdir(parents=True)
        for number in range(count):
            name = f"{number}.jpg" if count > 1 else "one.PNG"
            Image.new("RGB", (9, 7), (20 * number, 0, 0)).save(root / place / name)
    (root / "README").write_text("no split")
    return str(root)


def everything(source) -> list[tuple[bytes, int]]:
    """Returns all (encoded image, label) pairs of a split."""
    return [(source[number]["image"], source[number]["label"]) for number in range(len(source))]


@pytest.fixture(scope="module")
def digits_examples(digits_directory) -> dict[str, list[tuple[bytes, int]]]:
    """Returns all examples by split, read with tfds' own reader."""
    builder = prepared.ensure_prepared(lambda: digits.digits_builder(digits_directory))
    read = builder.as_data_source()
    return {name: [(example["image"], example["label"]) for example in part] for name, part in read.items()}


def test_digits_have_a_stratified_fifth_held_out(settings_for, digits_directory, digits_examples):
    source = sources.open_dataset(settings_for("digits", digits_directory))
    assert (source.num_classes, source.splits) == (10, {"train": 1437, "test": 360})
    assert source.class_names == tuple("0123456789")
    for name, fraction in {"train": 0.8, "test": 0.2}.items():
        counts = np.bincount([label for _, label in digits_examples[name]])
        assert np.abs(counts - fraction * np.bincount(load_digits().target)).max() < 1
        assert len(source.open_split(name)) == counts.sum()


def test_digits_are_scikit_learns_each_in_one_split(digits_examples):
    both = [*digits_examples["train"], *digits_examples["test"]]
    found = sorted((image[..., 0].tobytes(), label) for image, label in both)
    grey = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert found == sorted((image.tobytes(), label) for image, label in zip(grey, load_digits().target, strict=True))


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_tfds_set_gives_encoded_images_and_labels_by_number(settings_for, tiles, file_format):
    dataset = sources.open_dataset(settings_for("tiles", tiles(file_format)))
    assert (dataset.num_classes, dataset.class_names) == (3, ("a", "b", "c"))
    expected = tfds.builder("tiles", data_dir=tiles("array_record")).as_data_source("train[10:50]")
    source = dataset.open_split("train[10:50]")
    for number, example in enumerate(expected):
        assert isinstance(source[number]["image"], bytes)
        np.testing.assert_array_equal(decoding.decode(source[number]["image"]), example["picture"])
        assert source[number]["label"] == example["colour"] == int(example["picture"][0, 0, 0]) % 3
    file, record = re.search(r"\((\S+), record (\d+)\)", source.where(39)).groups()
    assert pathlib.Path(file).is_file() and int(record) < 20
    with pytest.raises(IndexError, match="example 40 of a split of 40"):
        source[40]


def test_a_missing_array_record_file_is_named(settings_for, tiles, tmp_path):
    shutil.copytree(tiles("array_record"), tmp_path / "copy")
    file = next((tmp_path / "copy").rglob("*train.array_record*"))
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file.name} is missing"):
        sources.open_dataset(settings_for("tiles", tmp_path / "copy")).open_split("train")


def test_another_prepared_version_is_named_with_the_fix(settings_for, tiles, tmp_path):
    shutil.copytree(pathlib.Path(tiles("array_record")) / "tiles", tmp_path / "tiles")
    (tmp_path / "tiles" / "1.0.0").rename(tmp_path / "tiles" / "0.9.0")

    def make():
        return conftest.Tiles(data_dir=str(tmp_path))

    with pytest.raises(FileNotFoundError, match=r"version 1\.0\.0.* holds version 0\.9\.0.*data\.name=tiles:0\.9\.0"):
        prepared.ensure_prepared(make)
    assert prepared.ensure_prepared(
        make, asked="tiles:1.0.0"
    ).info.splits  # requested by version, it is prepared beside the other


def test_splits_in_tfds_notation_are_disjoint_and_counted_without_reading(settings_for, tiles):
    source = sources.open_dataset(settings_for("tiles", tiles("tfrecord")))
    assert [source.num_examples(spec) for spec in ("train[:80%]", "train[80%:]", "train+test")] == [42, 11, 60]
    first, second = (everything(source.open_split(spec)) for spec in ("train[:80%]", "train[80%:]"))
    assert len(set(first) | set(second)) == 53
    assert source.open_split("train[:80%]") is source.open_split("train[:80%]")


def test_a_folder_is_read_as_tfds_image_folder_does(settings_for, folder):
    source = sources.open_dataset(settings_for("folder", folder, eval_split="val"))
    assert (source.class_names, source.splits) == (("ant", "cat", "dog"), {"train": 8, "val": 2})
    split = source.open_split("train")
    expected = tfds.ImageFolder(folder).as_dataset(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    assert everything(split) == [(e["image"], e["label"]) for e in expected.as_numpy_iterator()]
    paths = [e["image/filename"].decode() for e in expected.as_numpy_iterator()]
    assert f"({paths[5]})" in split.where(5)


def test_a_folders_splits_can_be_sliced_and_joined(settings_for, folder):
    source = sources.open_dataset(settings_for("folder", folder, eval_split="val"))
    whole = everything(source.open_split("train"))
    assert everything(source.open_split("train[6:]+val+train[:25%]")) == [
        *whole[6:],
        *everything(source.open_split("val")),
        *whole[:2],
    ]


@pytest.mark.parametrize("spec", ["dev", "train[", "train[:0]", "train[50%:20%]", "train[:9000]", "train-test"])
@pytest.mark.parametrize("name", ["digits", "folder", "synthetic"])
def test_a_split_that_is_not_there_is_refused_with_those_that_are(settings_for, digits_directory, folder, name, spec):
    directory = {"digits": digits_directory, "folder": folder, "synthetic": ""}[name]
    source = sources.open_dataset(settings_for(name, directory))
    with pytest.raises(ValueError, match="has the splits .*train") as error:
        source.open_split(spec)
    assert repr(spec) in str(error.value)


def test_unknown_names_are_refused_with_near_ones(settings_for, tmp_path):
    with pytest.raises(ValueError, match=r"data\.name='cifar1O0'.*cifar100"):
        sources.open_dataset(settings_for("cifar1O0", tmp_path))
    with pytest.raises(ValueError, match=r"data\.name='cifar10/brown' cannot be opened"):
        sources.open_dataset(settings_for("cifar10/brown", tmp_path))
    with pytest.raises(ValueError, match=r"data\.name='digit'.*digits"):
        sources.open_dataset(settings_for("digit", tmp_path))
    assert not list(tmp_path.iterdir())


def test_missing_places_are_refused(settings_for, tmp_path):
    gone = str(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"gone' does not exist.*mkdir"):
        sources.open_dataset(settings_for("cifar10", gone))
    with pytest.raises(FileNotFoundError, match=r"gone' does not exist.*train/CLASS"):
        sources.open_dataset(settings_for("folder", gone))
    with pytest.raises(ValueError, match=r"needs --config\.data\.directory"):
        sources.open_dataset(settings_for("folder"))
    with pytest.raises(FileNotFoundError, match="There are no images.*which holds no folder"):
        sources.open_dataset(settings_for("folder", tmp_path))
    (tmp_path / "train" / "cats").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"train is itself a split: .*data.directory={tmp_path}\\."):
        sources.open_dataset(settings_for("folder", tmp_path / "train"))


def test_imagenets_missing_archives_are_named_before_anything_is_written(settings_for, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        sources.open_dataset(settings_for("imagenet2012", tmp_path))
    message = str(error.value)
    assert "ILSVRC2012_img_train.tar" in message and "ILSVRC2012_img_val.tar" in message
    assert str(tmp_path / "downloads" / "manual") in message
    assert f"python -m tnt_jax.tools.prepare imagenet2012:5.1.0 --directory={tmp_path}" in message
    assert not list(tmp_path.iterdir())


def test_without_a_network_a_download_is_refused_at_once(settings_for, tmp_path, monkeypatch):
    def unreachable(address, timeout):
        raise OSError(f"no way to {address[0]}")

    monkeypatch.setattr(prepared.socket, "create_connection", unreachable)
    monkeypatch.setattr(prepared.urllib.request, "getproxies", dict)
    with pytest.raises(FileNotFoundError, match=r"cifar10 is not prepared in .*no connection to www\.cs\.toronto\.edu"):
        sources.open_dataset(settings_for("cifar10", tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_failed_preparation_says_where_and_why(settings_for, tmp_path, monkeypatch):
    def failing(self, **_):
        raise OSError("No space left on device")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", failing)
    with pytest.raises(ValueError, match="digits could not be prepared in .*No space left on device"):
        sources.open_dataset(settings_for("digits", tmp_path))


def test_an_unfinished_preparation_is_not_taken_for_a_data_set(settings_for, tmp_path):
    place = tmp_path / "digits" / "1.0.0"
    place.mkdir(parents=True)
    (place / "digits-train.tfrecord-00000-of-00001").touch()
    with pytest.raises(ValueError, match="holds no finished data set"):
        sources.open_dataset(settings_for("digits", tmp_path))


@pytest.mark.parametrize(
    ("features", "keys", "message"),
    [
        ({"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}, None, "supervised_keys"),
        ({"image": tfds.features.Image(), "label": tfds.features.Text()}, ("image", "label"), "not one or more labels"),
        (
            {"image": tfds.features.Image(), "label": tfds.features.Sequence(tfds.features.Text())},
            ("image", "label"),
            "not one or more labels",
        ),
        (
            {"image": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)},
            ("image", "label"),
            "not an image",
        ),
    ],
)
def test_what_cannot_be_classified_is_refused(tmp_path, features, keys, message):
    class Odd(tfds.testing.DummyDataset, skip_registration=True):
        def _info(self):
            features_dict = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features_dict, supervised_keys=keys)

    with pytest.raises(ValueError, match=message):
        prepared.ensure_prepared(lambda: Odd(data_dir=str(tmp_path)))
