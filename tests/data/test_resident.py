"""A data set in memory: the same examples, order and seeds as the reading pipeline, and clear errors."""

import itertools

import numpy as np
import pytest
from PIL import Image

from tests.training.helpers import checked_config
from tnt_jax.data import decoding, order, resident, sources


def settings(directory, **changes):
    plain = {
        "name": "folder",
        "directory": str(directory),
        "eval_split": "test",
        "randaugment": "",
        "color_jitter": 0.0,
    }
    changes = plain | {"repeated_augmentation": 2, "on_device": True} | changes
    return checked_config(**{f"data__{key}": value for key, value in changes.items()}).data


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, class_name, number in itertools.product(("train", "test"), ("a", "b"), range(5)):
        path = tmp_path / split / class_name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 7, 3)).astype(np.uint8)).save(path)
    return tmp_path


def test_every_example_is_there_in_the_order_of_the_split(folder):
    images, labels = resident.load(settings(folder), (8, 8))
    assert images.shape == (10, 6, 7, 3) and images.dtype == np.uint8 and sorted(labels) == [0] * 5 + [1] * 5
    source = sources.open_dataset(settings(folder)).open_split("train")
    for number in range(10):
        np.testing.assert_array_equal(images[number], decoding.decode(source[number]["image"]))
        assert labels[number] == source[number]["label"]


def test_a_batch_is_a_function_of_the_seed_and_the_step(folder):
    _, labels = resident.load(settings(folder), (8, 8))

    def batches(start, process=0, processes=1):
        return resident.train_batches(
            labels,
            copies=2,
            batch_size=8,
            seed=3,
            start_step=start,
            local_devices=2,
            process_index=process,
            process_count=processes,
        )

    first = list(itertools.islice(batches(0), 4))
    for name, value in next(batches(3)).items():
        np.testing.assert_array_equal(value, first[3][name])
    for batch in first:
        assert {name: field.shape for name, field in batch.items()} == {
            "index": (2, 4),
            "seed": (2, 4, 2),
            "label": (2, 4),
            "mask": (2, 4),
        }
        np.testing.assert_array_equal(labels[batch["index"]], batch["label"])
        assert len({tuple(seed) for seed in batch["seed"].reshape(-1, 2)}) == 8  # every copy has its own
        numbers = np.sort(batch["index"], axis=None)
        np.testing.assert_array_equal(numbers[::2], numbers[1::2])  # two copies of four images
    shares = [next(batches(1, process, 2))["index"].ravel() for process in range(2)]
    assert sorted(np.concatenate(shares)) == sorted(first[1]["index"].ravel())
    expected = order.TrainOrder(10, 8, 2, 3, 0, 1).local_batch(2)
    assert sorted(first[2]["index"].ravel()) == sorted(expected.sample_index)


def test_images_of_several_sizes_are_refused_with_the_example(folder):
    Image.new("RGB", (7, 9)).save(folder / "train" / "b" / "3.png")
    with pytest.raises(ValueError, match=r"3\.png.* has 9 x 7 pixels.*on_device=False"):
        resident.load(settings(folder), (8, 8))


def test_operations_on_colours_are_refused(folder):
    with pytest.raises(ValueError, match="data.on_device.*randaugment='rand-m9'"):
        settings(folder, randaugment="rand-m9")
    with pytest.raises(ValueError, match="color_jitter=0.4"):
        settings(folder, color_jitter=0.4)


def test_synthetic_examples_come_at_the_size_of_the_network():
    images, labels = resident.load(settings("", name="synthetic", synthetic_examples=12), (8, 16))
    assert images.shape == (12, 8, 16, 3) and labels.tolist() == list(range(12))
