"""Odd images are used; faulty ones are replaced or left out, and reported; a batch depends only on its step."""

import itertools
import logging

import numpy as np
import pytest

from tests.data import odd_images
from tnt_jax.data import batches, faulty, order, resident, sources

SIZE = (16, 16)
SOUND = 20


def train(settings, steps, found=None, **overrides):
    arguments = dict(batch_size=6, image_size=SIZE, seed=1, local_devices=1, faulty=found) | overrides
    return list(itertools.islice(batches.train_batches(settings, **arguments), steps))


def evaluate(settings, found=None, **overrides):
    arguments = dict(batch_size=8, image_size=SIZE, local_devices=1, faulty=found) | overrides
    return list(batches.eval_batches(settings, **arguments))


def assert_equal(out, others):
    for batch, other in zip(out, others, strict=True):
        for name in ("image", "label", "mask", "index"):
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns (a folder with sound and all faulty images, the same folder with sound ones in their place)."""
    root = tmp_path_factory.mktemp("faulty")
    for name in ("broken", "whole"):
        for split, class_name in itertools.product(("train", "test"), ("a", "b")):
            place = root / name / split / class_name
            place.mkdir(parents=True)
            for number in range(SOUND // 2):
                (place / f"{number}.jpg").write_bytes(odd_images.noise(number + 100 * (class_name == "b")))
            for number, (file, (make, _)) in enumerate(odd_images.FAULTY.items()):
                if (class_name == "a") == (number % 2 == 0):
                    (place / file).write_bytes(make() if name == "broken" else odd_images.noise(1000 + number))
    return root / "broken", root / "whole"


def settings_of(settings_for, folder, **changes):
    return settings_for("folder", str(folder), **{"repeated_augmentation": 2, **changes})


def faulty_numbers(settings, split):
    """Returns the faulty files' example numbers in a split."""
    examples = sources.open_dataset(settings).open_split(split)
    names = [examples.where(number) for number in range(len(examples))]
    return {number for number, name in enumerate(names) if name[:-1].rsplit("/")[-1] in odd_images.FAULTY}


@pytest.mark.parametrize("copies", [1, 2])
def test_odd_images_are_used_like_any_other(settings_for, tmp_path, copies):
    for split in ("train", "test"):
        for number, (name, make) in enumerate(odd_images.ODD.items()):
            (tmp_path / split / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            (tmp_path / split / "ab"[number % 2] / name).write_bytes(make())
    count, found = len(odd_images.ODD), faulty.FaultyImages()
    settings = settings_for(
        "folder", tmp_path, repeated_augmentation=copies, randaugment="rand-m9-mstd0.5-inc1", max_faulty_images=0
    )
    out = train(settings, 1 if copies == 1 else 8, found, batch_size=count)
    assert {int(index) for batch in out for index in batch["index"].ravel()} == set(range(count))
    (evaluated,) = evaluate(settings, found, batch_size=count)
    assert evaluated["mask"].sum() == count and found.count("train") == found.count("eval") == 0
    examples = sources.open_dataset(settings).open_split("test")
    for number in range(count):
        colour = evaluated["image"][0, number].reshape(-1, 3).mean(0)
        name = examples.where(number)
        if "grey" in name or "sixteen" in name or "bits" in name:
            assert np.ptp(colour) < 1, name
        else:
            assert np.abs(colour - [200, 100, 40]).max() < 13, name  # the palette's nearest colour is 12 off


@pytest.mark.parametrize("copies", [1, 2])
def test_faulty_images_are_replaced_and_nothing_else_changes(settings_for, folders, copies, caplog):
    broken, whole = (settings_of(settings_for, folder, repeated_augmentation=copies) for folder in folders)
    bad, found, steps = faulty_numbers(broken, "train"), faulty.FaultyImages(), 8 if copies == 1 else 20
    assert len(bad) == len(odd_images.FAULTY)
    with caplog.at_level(logging.WARNING):
        out = train(broken, steps, found)
    for number, (batch, other) in enumerate(zip(out, train(whole, steps), strict=True)):
        replaced = np.isin(other["index"], list(bad))
        epoch = number // batches.steps_per_epoch(broken, 6)
        assert not np.isin(batch["index"], list(bad)).any() and (batch["mask"] == 1).all()
        for name in ("image", "label", "index"):
            np.testing.assert_array_equal(batch[name][~replaced], other[name][~replaced])
        for place in np.argwhere(replaced):
            was, now = int(other["index"][tuple(place)]), int(batch["index"][tuple(place)])
            draws = [order.replacement(1, epoch, was, attempt, len(bad) + SOUND) for attempt in range(1, 20)]
            assert now == next(draw for draw in draws if draw not in bad)
    assert found.count("train") == len(bad)  # each counted once, though met in every epoch
    for file, (_, reason) in odd_images.FAULTY.items():
        (name,) = (name for name in found.names("train") if f"/{file}" in name)
        assert reason in name and name in caplog.text


def test_a_batch_with_replacements_depends_on_nothing_but_its_step(settings_for, folders):
    """Neither on faulty images met before (a resumed run has met none) nor on the other processes."""
    for copies in (1, 2):
        settings = settings_of(settings_for, folders[0], repeated_augmentation=copies)
        through = train(settings, 8)
        assert_equal(train(settings, 2, start_step=6), through[6:])
        single = settings_of(settings_for, folders[0], repeated_augmentation=1)
    shares = [train(single, 8, process_index=index, process_count=2) for index in range(2)]
    together = train(single, 8)
    for step, batch in enumerate(together):
        joined = np.concatenate([shares[0][step]["index"], shares[1][step]["index"]], axis=1)
        np.testing.assert_array_equal(joined, batch["index"])


def test_more_faulty_images_than_allowed_stop_training_with_their_names(settings_for, folders):
    settings = settings_of(settings_for, folders[0], max_faulty_images=2)
    with pytest.raises(ValueError, match=r"data\.max_faulty_images=2, but [34] images") as caught:
        train(settings, 8)
    assert sum(file in str(caught.value) for file in odd_images.FAULTY) >= 3
    settings = settings_of(settings_for, folders[0], max_faulty_images=len(odd_images.FAULTY))
    assert len(train(settings, 8)) == 8


def test_a_set_without_a_sound_image_stops(settings_for, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.jpg").write_bytes(b"no image")
    for changes in ({}, {"on_device": True}):
        settings = settings_for("folder", tmp_path, eval_split="train", **changes)
        with pytest.raises(ValueError, match="no usable example|none of the 3 images"):
            resident.load(settings, SIZE) if changes else train(settings, 1, batch_size=2)
    settings = settings_for("folder", tmp_path, eval_split="train", allow_faulty_eval=True)
    (batch,) = evaluate(settings)
    assert batch["mask"].sum() == 0


@pytest.mark.parametrize("file", odd_images.FAULTY)
def test_in_evaluation_a_faulty_image_is_an_error(settings_for, tmp_path, file):
    make, reason = odd_images.FAULTY[file]
    for name in ("a", "b"):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "0.jpg").write_bytes(odd_images.noise(0))
    (tmp_path / "test" / "a" / file).write_bytes(make())
    with pytest.raises(ValueError, match=rf"test/a/{file}\) cannot be read: ") as caught:
        evaluate(settings_for("folder", tmp_path))
    assert reason in str(caught.value) and "--config.data.allow_faulty_eval=True" in str(caught.value)


@pytest.mark.parametrize("processes", [1, 2])
def test_if_allowed_it_is_left_out_and_every_other_counts_once(settings_for, folders, processes):
    settings, found = settings_of(settings_for, folders[0], allow_faulty_eval=True), faulty.FaultyImages()
    bad = faulty_numbers(settings, "test")
    shares = [evaluate(settings, found, process_index=index, process_count=processes) for index in range(processes)]
    out = [batch for share in shares for batch in share]
    assert {len(share) for share in shares} == {-(-(SOUND + len(bad)) // 8)}
    index, mask, label = (np.concatenate([batch[name].ravel() for batch in out]) for name in ("index", "mask", "label"))
    np.testing.assert_array_equal(np.sort(index[mask == 1]), sorted(set(range(SOUND + len(bad))) - bad))
    assert (index[mask == 0] == -1).all() and (label[mask == 0] == 0).all()
    assert found.count("eval") == len(bad) and found.count("train") == 0
    whole = np.concatenate([batch["image"][batch["mask"] == 1] for batch in out])
    assert len(whole) == SOUND and whole.std() > 0


def test_a_set_on_the_devices_holds_copies_in_the_faulty_places(settings_for, folders):
    broken, whole = (settings_of(settings_for, folder, on_device=True) for folder in folders)
    bad = faulty_numbers(broken, "train")
    found = faulty.FaultyImages()
    images, labels = resident.load(broken, SIZE, faulty=found)
    others, other_labels = resident.load(whole, SIZE)
    sound = [number for number in range(len(images)) if number not in bad]
    np.testing.assert_array_equal(images[sound], others[sound])
    np.testing.assert_array_equal(labels[sound], other_labels[sound])
    for number in bad:
        assert any((images[number] == images[other]).all() and labels[number] == labels[other] for other in sound)
    assert found.count("train") == len(bad)
    with pytest.raises(ValueError, match=r"max_faulty_images=1, but 2"):
        resident.load(settings_of(settings_for, folders[0], on_device=True, max_faulty_images=1), SIZE)
