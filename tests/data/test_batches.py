import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tnt_jax.data import batches, decoding, order, prepared, sources, synthetic

SIZE = (8, 12)


def train(settings, steps, **overrides):
    arguments = dict(batch_size=12, image_size=SIZE, seed=1, local_devices=2)
    return list(itertools.islice(batches.train_batches(settings, **{**arguments, **overrides}), steps))


def assert_equal(out, others):
    for batch, other in zip(out, others, strict=True):
        for name in ("image", "label", "mask", "index"):
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize("copies", [1, 3])
def test_training_batches_have_the_promised_shapes_and_types(settings_for, tiles, copies):
    settings = settings_for("tiles", tiles("tfrecord"), repeated_augmentation=copies)
    for batch in train(settings, 2):
        assert {name: (field.shape, field.dtype.name) for name, field in batch.items()} == {
            "image": ((2, 6, 8, 12, 3), "uint8"),
            "label": ((2, 6), "int32"),
            "mask": ((2, 6), "float32"),
            "index": ((2, 6), "int32"),
        }
        assert (batch["mask"] == 1).all()


@pytest.mark.parametrize("copies", [1, 3])
def test_image_label_and_index_belong_together(settings_for, tiles, copies):
    """A tile's red value is its number in writing order; crop and flip do not change one-colour images."""
    settings = settings_for("tiles", tiles("array_record"), repeated_augmentation=copies)
    source = sources.open_dataset(settings).open_split("train")
    for batch in train(settings, 5):
        for image, label, index in zip(
            *(batch[name].reshape(12, -1) for name in ("image", "label", "index")), strict=True
        ):
            red = decoding.decode(source[int(index[0])]["image"]).getpixel((0, 0))[0]
            assert (image.reshape(-1, 3) == [red, 200, 100]).all() and label == red % 3


@pytest.mark.parametrize(("copies", "randaugment"), [(1, ""), (3, ""), (3, "rand-m9-mstd0.5-inc1")])
def test_a_batch_does_not_depend_on_the_start(settings_for, digits_directory, copies, randaugment):
    changes = {"repeated_augmentation": copies, "randaugment": randaugment, "train_interpolation": "random"}
    settings = settings_for("digits", digits_directory, train_split="train[:30]", **changes)
    through = train(settings, 5)  # two steps per epoch, so it reaches the third epoch
    for start in (1, 3):
        assert_equal(train(settings, 5 - start, start_step=start), through[start:])


def test_a_batch_does_not_depend_on_the_pieces_it_is_made_in(settings_for, digits_directory, monkeypatch):
    settings = settings_for("digits", digits_directory, repeated_augmentation=3, eval_split="test[:50]")
    place = dict(batch_size=24, image_size=(8, 8), local_devices=1)
    whole, evaluated = train(settings, 3, **place), list(batches.eval_batches(settings, **place))
    for size in (1, 5, 7):
        monkeypatch.setattr(batches, "_PIECE", size)
        assert_equal(train(settings, 3, **place), whole)
        assert_equal(batches.eval_batches(settings, **place), evaluated)


@pytest.mark.parametrize("randaugment", ["", "rand-m9-mstd0.5-inc1"])
def test_seeds_epochs_and_copies_have_draws_of_their_own(settings_for, digits_directory, randaugment):
    changes = {"repeated_augmentation": 2, "randaugment": randaugment}
    settings = settings_for("digits", digits_directory, train_split="train[:12]", **changes)
    first, second = train(settings, 2)
    other = train(settings, 1, seed=2)[0]
    views = {}
    for name, batch in {"first": first, "second": second, "other seed": other}.items():
        for image, index in zip(batch["image"].reshape(12, -1), batch["index"].reshape(12), strict=True):
            views.setdefault(int(index), []).append((name, image.tobytes()))
    assert all(len(seen) % 2 == 0 for seen in views.values())  # both copies are in the batch
    bytes_seen = [image for seen in views.values() for _, image in seen]
    assert len(set(bytes_seen)) > 0.9 * len(bytes_seen)


def test_an_epoch_visits_each_example_once(settings_for, tiles):
    settings = settings_for("tiles", tiles("tfrecord"))
    assert batches.steps_per_epoch(settings, 12) == 4
    seen = np.concatenate([batch["index"].ravel() for batch in train(settings, 4)])
    assert len(np.unique(seen)) == 48
    np.testing.assert_array_equal(seen, order.epoch_permutation(1, 0, 53)[:48])


@pytest.mark.parametrize("copies", [1, 3])
def test_processes_share_the_batch_of_one_process(settings_for, tiles, copies):
    settings = settings_for("tiles", tiles("tfrecord"), repeated_augmentation=copies)
    together = train(settings, 3, local_devices=1)
    shares = [train(settings, 3, local_devices=2, process_index=index, process_count=3) for index in range(3)]
    for step, whole in enumerate(together):
        pieces = [share[step] for share in shares]
        views = [
            sorted(
                zip(batch["index"].ravel(), (image.tobytes() for image in batch["image"].reshape(-1, 288)), strict=True)
            )
            for batch in (whole, *pieces)
        ]
        assert sorted(sum(views[1:], [])) == views[0]
        if copies == 1:
            np.testing.assert_array_equal(np.concatenate([p["index"].ravel() for p in pieces]), whole["index"].ravel())


def test_a_repeated_image_is_decoded_once_for_its_copies(settings_for, tiles, monkeypatch):
    settings = settings_for("tiles", tiles("tfrecord"), repeated_augmentation=3)
    decode, count = decoding.decode, itertools.count()
    monkeypatch.setattr(batches, "decode", lambda *arguments: next(count) >= 0 and decode(*arguments))
    out = train(settings, 4)
    seen = np.concatenate([batch["index"].ravel() for batch in out])
    images, counts = np.unique(seen, return_counts=True)
    assert len(images) == 16 and (counts == 3).all()
    assert next(count) <= 4 * (4 + 2)  # four images per batch; two more batches are being made
    rows = seen.reshape(4, 12)
    assert not (rows == rows[:, ::-1]).any()  # mixing pairs the batch with its reverse


@pytest.mark.parametrize(
    ("devices", "processes", "batch_size"), [(1, 1, 7), (2, 1, 10), (8, 1, 64), (1, 3, 6), (2, 2, 8), (2, 4, 48)]
)
def test_evaluation_counts_each_example_once(settings_for, tiles, devices, processes, batch_size):
    settings = settings_for("tiles", tiles("tfrecord"), eval_split="train[:50]")
    arguments = dict(batch_size=batch_size, image_size=SIZE, local_devices=devices, process_count=processes)
    shares = [list(batches.eval_batches(settings, **arguments, process_index=index)) for index in range(processes)]
    assert {len(share) for share in shares} == {-(-50 // batch_size)}
    out = [batch for share in shares for batch in share]
    assert all(batch["image"].shape == (devices, batch_size // devices // processes, 8, 12, 3) for batch in out)
    mask, index, label = (np.concatenate([batch[name].ravel() for batch in out]) for name in ("mask", "index", "label"))
    np.testing.assert_array_equal(np.sort(index[mask == 1]), np.arange(50))
    assert (index[mask == 0] == -1).all() and (label[mask == 0] == 0).all()
    assert {batch["mask"].dtype.name for batch in out} == {"float32"}


def test_evaluation_is_in_the_splits_order(settings_for, digits_directory):
    settings = settings_for("digits", digits_directory, eval_split="test[:20]", eval_crop_fraction=1.0)
    (batch,) = batches.eval_batches(settings, batch_size=24, image_size=(8, 8), local_devices=1)
    source = sources.open_dataset(settings).open_split("test[:20]")
    np.testing.assert_array_equal(batch["index"][0], [*range(20), *[-1] * 4])
    for number in range(20):
        np.testing.assert_array_equal(batch["image"][0, number], decoding.decode(source[number]["image"]))
        assert batch["label"][0, number] == source[number]["label"]


@pytest.mark.parametrize("copies", [1, 2])
def test_synthetic_images_come_from_their_numbers(settings_for, copies):
    settings = settings_for("synthetic", synthetic_examples=100, repeated_augmentation=copies, eval_split="validation")
    out = train(settings, 10, batch_size=10)
    assert_equal(train(settings, 2, batch_size=10, start_step=8), out[8:])
    for batch in out:
        index = batch["index"].ravel()
        np.testing.assert_array_equal(batch["image"].reshape(-1, 8, 12, 3), synthetic.examples(index, SIZE)[0])
        np.testing.assert_array_equal(batch["label"].ravel(), index % 1000)
    images, _ = synthetic.examples(np.arange(100), SIZE)
    assert len({image.tobytes() for image in images}) > 95
    assert 120 < images.mean() < 135
    evaluated = list(batches.eval_batches(settings, batch_size=64, image_size=SIZE, local_devices=2))
    assert sum(batch["mask"].sum() for batch in evaluated) == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batch_size=13), "batch_size=13 is not a multiple of the 2 devices"),
        (dict(batch_size=2, local_devices=4, process_count=2), "8 devices of 2 processes"),
        (dict(batch_size=0), "batch_size=0 is not"),
        (dict(batch_size=54), r"batch_size=54 does not fit the 53 examples of data\.train_split='train'"),
        (dict(local_devices=0), "0 devices"),
    ],
)
def test_batches_that_cannot_be_are_refused_at_once(settings_for, tiles, arguments, message):
    settings = settings_for("tiles", tiles("tfrecord"))
    defaults = dict(batch_size=12, image_size=SIZE, seed=1, local_devices=2)
    with pytest.raises(ValueError, match=message):
        batches.train_batches(settings, **{**defaults, **arguments})


def test_an_unknown_randaugment_is_refused_at_once(settings_for, tiles):
    with pytest.raises(ValueError, match="rand-x9"):
        train(settings_for("tiles", tiles("tfrecord"), randaugment="rand-x9"), 0)


def test_an_evaluation_batch_the_devices_do_not_divide_is_refused(settings_for, tiles):
    settings = settings_for("tiles", tiles("tfrecord"))
    with pytest.raises(ValueError, match="eval_batch_size=10 .* 8 devices"):
        batches.eval_batches(settings, batch_size=10, image_size=SIZE, local_devices=8)


def test_a_file_that_vanishes_is_named(settings_for, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / "0.jpg")
    settings = settings_for("folder", tmp_path)
    sources.open_dataset(settings)
    (tmp_path / "train/a/0.jpg").unlink()
    with pytest.raises(ValueError, match=r"a/0\.jpg\) cannot be read: .*No such file"):
        train(settings, 1, batch_size=2, local_devices=1)


def test_a_label_out_of_range_is_named(settings_for, tiles, monkeypatch):
    settings = settings_for("tiles", tiles("tfrecord"))
    get = prepared.TfdsSource.__getitem__
    monkeypatch.setattr(
        prepared.TfdsSource, "__getitem__", lambda self, i: get(self, i) | ({"label": -1} if i == 4 else {})
    )
    with pytest.raises(ValueError, match=r"example 4 of tiles.*split 'test' .*has the label -1; labels are 0 to 2"):
        list(batches.eval_batches(settings, batch_size=3, image_size=SIZE, local_devices=1))


def test_a_program_may_end_in_the_middle_of_an_epoch(digits_directory):
    """Iterators still alive at exit, and dropped ones, must neither block the program nor print errors."""
    program = f"""
import dataclasses, sys
from configs.default import get_config
from tnt_jax.data import settings
from tnt_jax.data.batches import eval_batches, train_batches
digits = settings.DataSettings(**get_config().data)
digits = dataclasses.replace(
    digits, name="digits", directory={digits_directory!r}, eval_split="test", randaugment="", color_jitter=0.0
)
place = dict(batch_size=24, image_size=(8, 8), local_devices=1)
for _ in range(3):
    made = train_batches(digits, seed=0, **place)
    next(made)
held = eval_batches(digits, **place)
next(held)
never = eval_batches(digits, **place)
print("made")
"""
    root = pathlib.Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", program], cwd=root, timeout=300, capture_output=True, text=True)
    # tfds may first report that it prepares the data set, for the first test that needs it.
    assert (ended.returncode, ended.stdout.splitlines()[-1:]) == (0, ["made"]), ended.stderr
    assert "Exception ignored" not in ended.stderr and "Traceback" not in ended.stderr
