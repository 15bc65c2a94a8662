"""Folders of images other than RGB: their batches keep the same guarantees, and what is lost is logged."""

import itertools
import logging
import types

import numpy as np
import pytest
from PIL import Image

from tnt_jax.data import batches, decoding, resident, sources
from tnt_jax.data.faulty import FaultyImages

PLACE = dict(batch_size=12, image_size=(12, 20), local_devices=2)
COUNTS = {"train": 21, "test": 5}


def pixels_of(number, kind):
    count, dtype = {"sixteen.png": (1, np.uint16), "alpha.png": (4, np.uint8), "five.npy": (5, np.uint8)}[kind]
    return np.random.default_rng(number).integers(0, np.iinfo(dtype).max, (16, 20, count), dtype)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns a folder by kind, with images of two classes, all of the same size."""
    roots = {}
    for kind in ("sixteen.png", "alpha.png", "five.npy"):
        roots[kind] = tmp_path_factory.mktemp(kind)
        for split, count in COUNTS.items():
            for number in range(count):
                path = roots[kind] / split / "ab"[number % 2] / f"{number}.{kind.partition('.')[2]}"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = pixels_of(number, kind)
                if path.suffix == ".npy":
                    np.save(path, pixels)
                else:
                    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    return roots


def assert_equal(out, others):
    for batch, other in zip(out, others, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize(
    ("kind", "channels", "bits"), [("sixteen.png", 1, 16), ("alpha.png", 4, 8), ("five.npy", 5, 8)]
)
def test_batches_are_functions_of_their_steps(settings_for, folders, kind, channels, bits):
    """With or without workers, from any step; an evaluation has every example once."""
    settings = settings_for("folder", folders[kind], pixel_bits=bits, worker_processes=0, repeated_augmentation=2)
    place = {**PLACE, "channels": channels}
    through = list(itertools.islice(batches.train_batches(settings, seed=1, **place), 4))
    assert through[0]["image"].shape == (2, 6, 12, 20, channels)
    assert through[0]["image"].dtype == (np.uint8 if bits == 8 else np.uint16)
    assert_equal(itertools.islice(batches.train_batches(settings, seed=1, start_step=3, **place), 1), through[3:])
    evaluated = list(batches.eval_batches(settings, **place))
    assert sorted(evaluated[0]["index"].ravel().tolist()) == [-1] * 7 + [0, 1, 2, 3, 4]
    if kind == "five.npy":
        workers = settings_for("folder", folders[kind], worker_processes=2, repeated_augmentation=2)
        out = batches.train_batches(workers, seed=1, start_step=2, **place)
        assert_equal(itertools.islice(out, 2), through[2:])
        out.close()


@pytest.mark.parametrize(
    ("kind", "channels", "bits"), [("sixteen.png", 1, 16), ("alpha.png", 4, 8), ("five.npy", 5, 8)]
)
def test_a_resident_set_and_an_example_have_the_files_pixels(settings_for, folders, kind, channels, bits):
    settings = settings_for("folder", folders[kind], pixel_bits=bits, on_device=True)
    images, labels = resident.load(settings, (12, 20), channels)
    source = sources.open_dataset(settings).open_split("train")
    for number in range(len(labels)):
        name = int(source.where(number).rpartition("/")[2].partition(".")[0])
        np.testing.assert_array_equal(images[number], pixels_of(name, kind))
        assert labels[number] == name % 2
    np.testing.assert_array_equal(sources.read_example(settings, "train", 3, channels), images[3])


def test_what_is_dropped_is_logged_once_with_its_count(settings_for, folders, caplog):
    settings, faulty = settings_for("folder", folders["alpha.png"]), FaultyImages()
    with caplog.at_level(logging.WARNING, logger="absl"):  # the level that programs show by default
        list(itertools.islice(batches.train_batches(settings, seed=1, faulty=faulty, **PLACE), 3))
        list(batches.eval_batches(settings, faulty=faulty, **PLACE))
        resident.load(settings, (12, 20), faulty=FaultyImages())
    lines = [message for message in caplog.messages if decoding.ALPHA in message]
    assert [line.partition(" images")[0] for line in lines] == [
        f"Note: {n}" for n in ("12 of 12", "5 of 5", "21 of 21")
    ]
    assert all("alpha.png" in line and ".png)" in line for line in lines)
    with caplog.at_level(logging.INFO, logger="absl"):
        caplog.clear()
        list(batches.eval_batches(settings, channels=4, **PLACE))
    assert not [message for message in caplog.messages if "Note:" in message]


def test_files_of_other_channels_are_faulty_by_their_path(settings_for, folders):
    settings = settings_for("folder", folders["five.npy"])
    with pytest.raises(ValueError, match=r"test/[ab]/\d\.npy\) cannot be read: it holds uint8 \[16, 20, 5\], where"):
        list(batches.eval_batches(settings, channels=4, **PLACE))
    with pytest.raises(ValueError, match=r"no usable example .* last is .*\.png\): it is an image, but model"):
        settings = settings_for("folder", folders["alpha.png"])
        list(itertools.islice(batches.train_batches(settings, channels=5, seed=1, **PLACE), 3))


def test_a_set_without_such_images_is_refused_before_a_run_starts(settings_for, folders):
    settings = settings_for("folder", folders["alpha.png"])
    with pytest.raises(ValueError, match=r"in_channels=5, .*none of the first 5 .*\.png\): it is an image, but .*keys"):
        batches.check_channels(settings, 5)
    for channels in (1, 3, 4):
        batches.check_channels(settings, channels)
    batches.check_channels(settings_for("folder", folders["sixteen.png"], pixel_bits=16), 3)
    batches.check_channels(settings_for("synthetic"), 5)
    five = settings_for("folder", folders["five.npy"])
    batches.check_channels(five, 5)
    with pytest.raises(ValueError, match=r"in_channels=3, .*none .*\.npy\): it holds uint8 \[16, 20, 5\]"):
        batches.check_channels(five, 3)


class Arrays(list):
    """A split whose records are arrays, as of a tfds set with a Tensor feature."""

    def where(self, index):
        return f"example {index}"


def test_arrays_of_any_set_are_checked(settings_for, monkeypatch):
    split = Arrays([{"image": np.zeros((8, 8, 5), np.uint8), "label": 0}])
    monkeypatch.setattr(sources, "open_dataset", lambda settings: types.SimpleNamespace(open_split=lambda spec: split))
    batches.check_channels(settings_for("mine"), 5)
    with pytest.raises(ValueError, match=r"in_channels=3, .*none .*example 0: it holds uint8 \[8, 8, 5\]"):
        batches.check_channels(settings_for("mine"), 3)


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (3, 8), (5, 16)])
def test_synthetic_images_have_any_channels(settings_for, channels, bits):
    settings = settings_for("synthetic", pixel_bits=bits)
    (batch,) = itertools.islice(batches.train_batches(settings, seed=1, channels=channels, **PLACE), 1)
    assert batch["image"].shape == (2, 6, 12, 20, channels) and batch["image"].dtype == f"uint{bits}"
    assert batch["image"].max() > 0.9 * 2**bits


def test_a_grey_set_of_tfds_is_grey(settings_for, digits_directory):
    """Digits are stored with three equal channels; grey is one of them, unchanged."""
    settings = settings_for("digits", digits_directory)
    grey, colours = (next(batches.eval_batches(settings, channels=count, **PLACE))["image"] for count in (1, 3))
    np.testing.assert_array_equal(np.repeat(grey, 3, axis=-1), colours)
