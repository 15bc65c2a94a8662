"""The report card: each measure against NumPy, class subsets, several labels, and real tfds builders end to end."""

import csv
import dataclasses
import json

import flax.traverse_util
import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenet2012_corrupted import imagenet2012_corrupted_dataset_builder as corrupted
from tensorflow_datasets.datasets.imagenet2012_real import imagenet2012_real_dataset_builder as real
from tensorflow_datasets.datasets.imagenet_a import imagenet_a_dataset_builder as imagenet_a
from tensorflow_datasets.datasets.imagenet_r import imagenet_r_dataset_builder as imagenet_r
from tensorflow_datasets.datasets.imagenet_sketch import imagenet_sketch_dataset_builder as imagenet_sketch
from tensorflow_datasets.datasets.imagenet_v2 import imagenet_v2_dataset_builder as imagenet_v2

from tests.training.helpers import TinyModel, batch, experiment, random_variables, tiny_config
from tnt_jax.models.variants import create_model
from tnt_jax.pretrained import save_pretrained
from tnt_jax.pretrained.sources import Weights
from tnt_jax.training import card_sets, loop, measures, report_card, setup
from tnt_jax.training.state import replicate
from tnt_jax.training.subsets import SUBSETS

SYNSETS = tuple(tfds.builder("imagenet2012").info.features["label"].names)


def by_hand(logits, labels, classes=None):
    """logits [n, K], labels: for each image a set of classes -> the measures in float64, image by image."""
    classes = np.arange(logits.shape[1]) if classes is None else np.asarray(classes)
    top1, top5, likelihood, bins = [], [], [], {}
    for row, wanted in zip(logits.astype(np.float64)[:, classes], labels, strict=True):
        probabilities = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        order = classes[np.argsort(-probabilities, kind="stable")]
        top1.append(order[0] in wanted)
        top5.append(bool(set(order[:5].tolist()) & wanted))
        likelihood.append(-np.log(sum(probabilities[classes.tolist().index(each)] for each in wanted)))
        confidence = probabilities.max()
        number = next(m for m in range(1, 16) if (m - 1) / 15 < confidence <= m / 15)
        bins.setdefault(number, []).append((confidence, top1[-1]))
    gaps = [
        len(found) * abs(np.mean([c for c, _ in found]) - np.mean([r for _, r in found])) for found in bins.values()
    ]
    return {
        "accuracy": np.mean(top1),
        "accuracy_top5": np.mean(top5),
        "negative_log_likelihood": np.mean(likelihood),
        "expected_calibration_error": sum(gaps) / len(logits),
        "count": len(logits),
    }


COMPILED = jax.jit(measures.sums_of_batch)


def measured(logits, labels, mask=None, classes=None):
    """The measures of any number of images and classes, filled up to 300 and 12, so that they share a program."""
    images, more = len(logits), 300 - len(logits)
    allowed = np.zeros(12, np.float32)
    allowed[list(range(logits.shape[1]) if classes is None else classes)] = 1
    logits = np.pad(logits, ((0, more), (0, 12 - logits.shape[1])))
    labels = np.pad(labels, ((0, more), (0, 0))[: labels.ndim])
    mask = np.pad(np.ones(images, np.float32) if mask is None else mask, (0, more))
    sums = COMPILED(logits, labels, mask, allowed)
    return measures.finish({name: np.asarray(value, np.float64) for name, value in sums.items()})


def multi_hot(labels, classes):
    return np.array([[number in wanted for number in range(classes)] for wanted in labels], np.uint8)


def test_measures_by_value():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.55, 0.35], [0.3, 0.25, 0.45], [0.62, 0.3, 0.08]], np.float32))
    found = measured(logits, np.array([0, 2, 2, 1]))
    # 0.62 lies in the bin (9/15, 10/15], 0.7 in (10/15, 11/15], 0.55 in (8/15, 9/15], 0.45 in (6/15, 7/15].
    assert found == {
        "accuracy": pytest.approx(0.5),
        "accuracy_top5": 1.0,
        "negative_log_likelihood": pytest.approx(-np.log([0.7, 0.35, 0.45, 0.3]).mean(), rel=1e-6),
        "expected_calibration_error": pytest.approx((0.3 + 0.55 + 0.55 + 0.62) / 4, rel=1e-6),
        "count": 4,
    }


def test_images_of_a_bin_make_up_for_each_other():
    logits = np.log(np.array([[0.61, 0.39], [0.65, 0.35]], np.float32))
    assert measured(logits, np.array([0, 1]))["expected_calibration_error"] == pytest.approx(0.63 - 0.5, rel=1e-5)


def test_measures_against_numpy():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 2, (300, 12)).astype(np.float32), rng.integers(0, 12, 300)
    assert measured(logits, labels) == pytest.approx(by_hand(logits, [{each} for each in labels.tolist()]), rel=1e-5)


def test_other_classes_than_the_sets_are_left_out():
    rng = np.random.default_rng(1)
    classes = [1, 2, 5, 6, 8, 9, 11]
    logits, labels = rng.normal(0, 2, (200, 12)).astype(np.float32), rng.choice(classes, 200)
    expected = by_hand(logits, [{each} for each in labels.tolist()], classes)
    assert measured(logits, labels, classes=classes) == pytest.approx(expected, rel=1e-5)
    assert measured(logits, labels)["accuracy"] < expected["accuracy"]


def test_one_of_several_labels_is_right():
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (150, 12)).astype(np.float32)
    labels = [set(rng.choice(12, rng.integers(1, 4), replace=False).tolist()) for _ in logits]
    assert measured(logits, multi_hot(labels, 12)) == pytest.approx(by_hand(logits, labels), rel=1e-5)


def test_padding_and_images_without_a_label_do_not_count():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (20, 12)).astype(np.float32)
    labels = [set() if number % 3 == 0 else {number % 12, 1} for number in range(20)]
    mask = np.array([len(wanted) > 0 for wanted in labels], np.float32)
    there = mask > 0
    expected = by_hand(logits[there], [wanted for wanted in labels if wanted])
    assert measured(logits, multi_hot(labels, 12), mask) == pytest.approx(expected, rel=1e-5)


def test_nothing_counted_is_an_error():
    with pytest.raises(ValueError, match="No image was counted"):
        measured(np.zeros((2, 3), np.float32), np.zeros(2, np.int32), np.zeros(2, np.float32))


@pytest.mark.parametrize("devices", [1, 8])
def test_ragged_batches_count_once_on_any_number_of_devices(devices):
    settings, model = experiment(), TinyModel()
    params = random_variables(model)["params"]
    used = jax.local_devices()[:devices]
    step = measures.make_measure_step(settings, model, devices=used)
    classes = np.ones(4, np.float32)
    batches = [(7, 16), (8, 16), (9, 3)]  # 35 images
    total = None
    for seed, real_images in batches:
        sums = step(replicate(params, used), batch(seed, 16, real_images, devices), classes)
        sums = {name: np.asarray(value[0], np.float64) for name, value in sums.items()}
        total = sums if total is None else {name: total[name] + sums[name] for name in sums}
    logits, labels = [], []
    for seed, real_images in batches:
        one = {name: value[0][:real_images] for name, value in batch(seed, 16, real_images).items()}
        images = (one["image"] / 255 - np.array(settings.data.mean)) / np.array(settings.data.std)
        logits.append(model.apply({"params": params}, images.astype(np.float32)))
        labels += [{each} for each in one["label"].tolist()]
    assert measures.finish(total) == pytest.approx(by_hand(np.concatenate(logits), labels), rel=1e-4)


def test_the_200_classes_of_imagenet_a_and_r():
    names = {name: {SYNSETS[number] for number in numbers} for name, numbers in SUBSETS.items()}
    assert {name: len(found) for name, found in names.items()} == {"imagenet_a": 200, "imagenet_r": 200}
    assert all(numbers == tuple(sorted(numbers)) for numbers in SUBSETS.values())
    # From the authors' lists: stingray is in both, goldfish in R alone.
    assert "n01498041" in names["imagenet_a"] & names["imagenet_r"]
    assert "n01443537" in names["imagenet_r"] - names["imagenet_a"]


class Few(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Five images of three of ImageNet's classes, labelled 0 to 2 in an order of their own."""

    VERSION = tfds.core.Version("1.0.0")
    NAMES = (SYNSETS[30], SYNSETS[4], SYNSETS[999])

    def _info(self):
        label = tfds.features.ClassLabel(names=list(self.NAMES))
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": label}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {"held_out": self._generate_examples()}

    def _generate_examples(self):
        for number in range(5):
            yield number, {"image": pixels(number), "label": number % 3}


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (12, 12, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """data_dir with the real builders of imagenet_a and imagenet2012_real, over miniature archives, and "few"."""
    root = tmp_path_factory.mktemp("sets")
    wanted = [SYNSETS[number] for number in (6, 11, 988)]
    for number in range(19):
        place = root / "archive" / wanted[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(tf.io.encode_jpeg(pixels(number)).numpy())

    class A(imagenet_a.Builder, skip_registration=True):
        name = "imagenet_a"

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples(str(root / "archive"))}

    class Real(real.Builder, skip_registration=True):
        name = "imagenet2012_real"

        def _split_generators(self, dl_manager):
            labels = {0: [7, 2], 1: [], 2: [999], 3: [0, 1, 2], 4: [5]}
            common = {"original_label": 0, "file_name": ""}
            return {"validation": ((i, {"image": pixels(i), "real_label": labels[i], **common}) for i in labels)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        for builder in (A, Real, Few):
            builder(data_dir=str(root)).download_and_prepare()
        yield root


@pytest.fixture(scope="module")
def more_sets(tmp_path_factory):
    """data_dir with the other sets' real features over a few images each."""
    root = tmp_path_factory.mktemp("more_sets")

    def prepare(base, set_name, split, labels, image=pixels, config=None):
        class Small(base, skip_registration=True):
            name = set_name

            def _split_generators(self, dl_manager):
                fields = ({"image": image(i), "label": label, "file_name": f"{i}"} for i, label in enumerate(labels))
                return {split: enumerate(fields)}

        Small(data_dir=str(root), config=config).download_and_prepare()

    prepare(imagenet_r.Builder, "imagenet_r", "test", [SYNSETS[1], SYNSETS[2]])
    prepare(imagenet_v2.Builder, "imagenet_v2", "test", [0, 500, 999], config="matched-frequency")
    prepare(imagenet_sketch.Builder, "imagenet_sketch", "test", [SYNSETS[number] for number in (0, 500, 7, 999)])
    labels = [SYNSETS[number] for number in (0, 1, 2, 3, 999)]

    def grey(number):
        return np.full((224, 224, 3), 40 * number, np.uint8)

    prepare(corrupted.Builder, "imagenet2012_corrupted", "validation", labels, grey, "gaussian_noise_1")
    return root


def test_every_set_that_the_readme_names_is_evaluated(tmp_path, more_sets, weights):
    sets = ("imagenet_v2/matched-frequency", "imagenet_r", "imagenet_sketch", "imagenet2012_corrupted/gaussian_noise_1")
    card = loop.evaluate(prepared(tmp_path, more_sets, weights, *sets))
    found = [(row["set"], row["split"], row["count"]) for row in card["results"]]
    splits, counts = ("test", "test", "test", "validation"), (3, 2, 4, 5)
    assert found == list(zip(sets, splits, counts, strict=True))
    for row in card["results"]:
        assert np.isfinite(row["negative_log_likelihood"]) and 0 <= row["accuracy"] <= row["accuracy_top5"] <= 1
    few = max(row["negative_log_likelihood"] for row in card["results"] if row["set"] == "imagenet_r")
    assert few < 0.95 * card["results"][0]["negative_log_likelihood"]  # of 200 classes, not of 1,000


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights of the tiny model of tests.training.helpers with 1,000 classes, as a file."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = create_model(**experiment(model__num_classes=1000).model.arguments())
    variables = random_variables(model)
    save_pretrained(path, model, variables)
    return path, model, variables


def prepared(workdir, directory, weights, *sets, **changes):
    config = tiny_config(
        report_card=sets,
        data__name="imagenet2012",
        data__directory=str(directory),
        pretrained=str(weights[0]),
        model__num_classes=1000,
        **changes,
    )
    return setup.prepare_evaluation(config, workdir)


def test_a_card_of_real_builders(tmp_path, directory, weights, capsys):
    run = prepared(tmp_path, directory, weights, "imagenet_a", "imagenet2012_real:validation", "few:held_out")
    card = loop.evaluate(run)
    assert card == json.loads((tmp_path / report_card.JSON_FILE).read_text())
    rows = list(csv.DictReader((tmp_path / report_card.CSV_FILE).open()))
    assert rows == [{name: str(row[name]) for name in report_card.COLUMNS} for row in card["results"]]
    assert [(row["set"], row["split"], row["weights"]) for row in card["results"]] == [
        ("imagenet_a", "test", "raw"),
        ("imagenet2012_real", "validation", "raw"),
        ("few", "held_out", "raw"),
    ]
    assert [(row["classes"], row["count"], row["left_out"]) for row in card["results"]] == [
        (200, 19, 0),
        (1000, 4, 1),
        (3, 5, 0),
    ]
    _, model, variables = weights
    apply = jax.jit(model.apply)
    for card_set, row in zip(run.feed.sets, card["results"], strict=True):
        logits, labels = [], []
        for each in run.feed.batches(card_set):
            images = (each["image"].reshape(-1, 8, 8, 3) / 255 - 0.5) / 0.5
            counted = each["mask"].reshape(-1) > 0
            logits.append(np.asarray(apply(variables, images.astype(np.float32)))[counted])
            several = each["labels"].reshape(-1, 1000) if "labels" in each else np.eye(1000)[each["label"].reshape(-1)]
            labels += [set(np.flatnonzero(found).tolist()) for found in several[counted]]
        expected = by_hand(np.concatenate(logits), labels, np.flatnonzero(card_set.classes))
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-3), row["set"]
        # The labels are ImageNet's: of imagenet_a the three folders', of "few" those that its names have there.
        classes = {"imagenet_a": {6, 11, 988}, "imagenet2012_real": {7, 2, 999, 0, 1, 5}, "few": {30, 4, 999}}
        assert set().union(*labels) == classes[row["set"]]
    printed = capsys.readouterr().out
    assert "imagenet2012_real" in printed and f"{100 * card['results'][0]['expected_calibration_error']:.2f}" in printed


def test_raw_and_averaged_weights_of_a_run(tmp_path, weights, monkeypatch):
    """A checkpoint's card has a row for each, the same as the loop's own evaluation of that set."""
    params = weights[2]["params"]
    ema = jax.tree.map(lambda leaf: leaf * 3, params)
    trees = {"raw": params, "averaged": ema}
    flat = {name: flax.traverse_util.flatten_dict(tree, sep="/") for name, tree in trees.items()}
    saved = {name: Weights(arrays, "own", "a", kind=name, step=2) for name, arrays in flat.items()}
    monkeypatch.setattr(loop, "read_sets", lambda workdir: (None, saved))
    changes = {"data__name": "synthetic", "data__synthetic_examples": 35, "model__num_classes": 1000}
    found = []
    for sets in ((), ("synthetic:test",)):
        config = tiny_config(report_card=sets, pretrained=str(weights[0]), data__eval_split="test", **changes)
        run = setup.prepare_evaluation(config, tmp_path)
        found.append(loop.evaluate(dataclasses.replace(run, pretrained=None)))
    own, card = found
    assert [row["weights"] for row in card["results"]] == ["raw", "ema"] and card["step"] == 2
    for row, name in zip(card["results"], ("eval", "eval_ema"), strict=True):
        assert row["count"] == own[name]["count"] == 35
        assert row["accuracy"] == pytest.approx(own[name]["accuracy"])
        assert row["accuracy_top5"] == pytest.approx(own[name]["accuracy_top5"])
        assert row["negative_log_likelihood"] == pytest.approx(own[name]["loss"], rel=1e-5)
    assert own["eval"]["loss"] != own["eval_ema"]["loss"]


def test_what_is_not_a_number_is_empty():
    settings = experiment().data
    card_set = card_sets.CardSet(settings, 3, np.ones(4, np.float32), None)
    found = dict.fromkeys(("accuracy", "accuracy_top5"), 0.5) | {"count": 2, "expected_calibration_error": 0.25}
    row = report_card._row(card_set, "raw", found | {"negative_log_likelihood": float("nan")})
    assert row["negative_log_likelihood"] is None and row["left_out"] == 1
    assert report_card.as_csv([row]).splitlines()[1] == f"{settings.name},{settings.eval_split},raw,4,0.5,0.5,,0.25,2,1"


def test_all_sets_that_are_missing_are_named_at_once(tmp_path, directory, weights):
    sets = ("imagenet_v2/matched-frequency", "imagenet_a", "imagenet_r:test", "imagenet_b", "a b")
    with pytest.raises(ValueError) as error:
        prepared(tmp_path / "run", directory, weights, *sets)
    message = str(error.value)
    assert f"not prepared in {directory}: imagenet_v2/matched-frequency, imagenet_r." in message
    assert "'imagenet_b'" in message and "'a b' is not NAME" in message and "tnt_jax.tools.prepare NAME" in message
    assert not (tmp_path / "run").exists()


def test_sets_of_other_classes_are_refused(tmp_path, directory, weights):
    with pytest.raises(
        ValueError, match="digits has classes that the model does not know: '0', '1', .* Take the set off"
    ):
        prepared(tmp_path, directory, weights, "digits")
    with pytest.raises(ValueError, match="few has the splits held_out: say which"):
        prepared(tmp_path, directory, weights, "few")
    config = tiny_config(
        report_card=("imagenet_a", "few:held_out"),
        data__name="digits",
        data__directory=str(directory),
        model__num_classes=10,
        pretrained=str(weights[0]),
    )
    with pytest.raises(ValueError) as error:
        setup.prepare_evaluation(config, tmp_path)
    assert "imagenet_a has classes that the model does not know: 'n01440764'" in str(error.value)
    assert "few has classes that the model does not know: 'n" in str(error.value)


def test_a_label_outside_the_sets_classes_is_an_error(tmp_path, directory, weights):
    run = prepared(tmp_path, directory, weights, "imagenet_a")
    wrong = {"label": np.array([[6, 7]]), "mask": np.ones((1, 2)), "index": np.array([[3, 4]])}
    with pytest.raises(ValueError, match="imagenet_a: example 4 of test has the label 7"):
        run.feed.sets[0].in_model_classes(wrong)


def test_sets_with_several_labels_are_not_trained_on(tmp_path, directory):
    config = tiny_config(data__name="imagenet2012_real", data__directory=str(directory), data__train_split="validation")
    with pytest.raises(ValueError, match="several labels an image"):
        setup.prepare(config, tmp_path)
