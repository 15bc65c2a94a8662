"""The evaluation suite: class subsets, several labels, and real tfds builders end to end."""

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

from tests.training.helpers import checked_config, random_variables, tiny_config
from tests.training.test_evaluation import by_hand
from tnt_jax.data.batches import train_batches
from tnt_jax.data.sources import open_dataset
from tnt_jax.models.variants import create_model
from tnt_jax.pretrained import save_pretrained
from tnt_jax.pretrained.sources import Weights
from tnt_jax.training import evaluate, setup
from tnt_jax.training.evaluation_suite import SUBSETS, SuiteSet
from tnt_jax.training.input_pipeline import make_input_pipeline
from tnt_jax.training.runtime import RunError
from tnt_jax.workdir import SUITE_FILE

SYNSETS = tuple(tfds.builder("imagenet2012").info.features["label"].names)


def test_the_200_classes_of_imagenet_a_and_r():
    names = {name: {SYNSETS[number] for number in numbers} for name, numbers in SUBSETS.items()}
    assert {name: len(found) for name, found in names.items()} == {"imagenet_a": 200, "imagenet_r": 200}
    assert all(numbers == tuple(sorted(numbers)) for numbers in SUBSETS.values())
    # From the authors' lists: stingray is in both, goldfish only in R.
    assert "n01498041" in names["imagenet_a"] & names["imagenet_r"]
    assert "n01443537" in names["imagenet_r"] - names["imagenet_a"]


class Few(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Five images of three ImageNet classes, labelled 0 to 2 in an order of their own."""

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
    """A data_dir with the real builders of imagenet_a and imagenet2012_real over miniature archives, and "few"."""
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
    """A data_dir with the other sets: their real features, a few images each."""
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


def test_every_set_that_the_readme_names_is_evaluated(tmp_path, more_sets, weights, capsys):
    sets = ("imagenet_v2/matched-frequency", "imagenet_r", "imagenet_sketch", "imagenet2012_corrupted/gaussian_noise_1")
    suite = evaluate.evaluate(prepared(tmp_path, more_sets, weights, *sets, loss="sigmoid"))
    found = [(row["set"], row["split"], row["count"]) for row in suite["results"]]
    splits, counts = ("test", "test", "test", "validation"), (3, 2, 4, 5)
    assert found == list(zip(sets, splits, counts, strict=True))
    for row in suite["results"]:
        assert np.isfinite(row["negative_log_likelihood"]) and 0 <= row["accuracy"] <= row["accuracy_top5"] <= 1
    published = {row["set"]: (row["accuracy"], row["accuracy_top5"]) for row in suite["published"]}
    # from timm's tables, which have no row for noise
    assert published == dict(zip(sets, ((0.7017, 0.8951), (0.42697, 0.58147), (0.30191, 0.4891)), strict=False))
    printed = capsys.readouterr().out
    assert "Note: NLL and ECE are of a softmax over the logits" in printed
    assert "published         -     42.70     58.15" in printed and "timm/tnt_s_patch16_224.in1k at 224x224" in printed
    few = max(row["negative_log_likelihood"] for row in suite["results"] if row["set"] == "imagenet_r")
    assert few < 0.95 * suite["results"][0]["negative_log_likelihood"]  # over 200 classes, not 1,000


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Saves the tiny model of tests.training.helpers with 1,000 classes -> (path, model, variables)."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = create_model(**checked_config(model__num_classes=1000).model.arguments())
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


def test_a_suite_of_real_builders(tmp_path, directory, weights, capsys):
    run = prepared(tmp_path, directory, weights, "imagenet_a", "imagenet2012_real:validation", "few:held_out")
    suite = evaluate.evaluate(run)
    assert suite == json.loads((tmp_path / SUITE_FILE).read_text())
    rows = list(csv.DictReader((tmp_path / evaluate.CSV_FILE).open()))
    assert rows == [
        {name: "" if row[name] is None else str(row[name]) for name in evaluate.COLUMNS} for row in suite["results"]
    ]
    assert [(row["set"], row["split"], row["weights"]) for row in suite["results"]] == [
        ("imagenet_a", "test", "raw"),
        ("imagenet2012_real", "validation", "raw"),
        ("few", "held_out", "raw"),
    ]
    assert [(row["classes"], row["count"], row["left_out"]) for row in suite["results"]] == [
        (200, 19, 0),
        (1000, 4, 1),
        (3, 5, 0),
    ]
    _, model, variables = weights
    apply = jax.jit(model.apply)
    for suite_set, row in zip(run.pipeline.sets, suite["results"], strict=True):
        logits, labels = [], []
        for each in run.pipeline.batches(suite_set):
            images = (each["image"].reshape(-1, 8, 8, 3) / 255 - 0.5) / 0.5
            counted = each["mask"].reshape(-1) > 0
            logits.append(np.asarray(apply(variables, images.astype(np.float32)))[counted])
            several = each["labels"].reshape(-1, 1000) if "labels" in each else np.eye(1000)[each["label"].reshape(-1)]
            labels += [set(np.flatnonzero(found).tolist()) for found in several[counted]]
        expected = by_hand(np.concatenate(logits), labels, np.flatnonzero(suite_set.classes))
        expected["negative_log_likelihood"] = expected.pop("loss")
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-3), row["set"]
        # Labels are ImageNet's: for imagenet_a those of the three folders, for "few" those of its names.
        classes = {"imagenet_a": {6, 11, 988}, "imagenet2012_real": {7, 2, 999, 0, 1, 5}, "few": {30, 4, 999}}
        assert set().union(*labels) == classes[row["set"]]
    printed = capsys.readouterr().out
    assert "Note: NLL" not in printed
    assert (
        "imagenet2012_real" in printed and f"{100 * suite['results'][0]['expected_calibration_error']:.2f}" in printed
    )


def test_raw_and_averaged_weights_of_a_run(tmp_path, weights, monkeypatch):
    """A checkpoint's suite has a row for each, equal to the evaluation of that set without a suite."""
    params = weights[2]["params"]
    ema = jax.tree.map(lambda leaf: leaf * 3, params)
    trees = {"raw": params, "averaged": ema}
    flat = {name: flax.traverse_util.flatten_dict(tree, sep="/") for name, tree in trees.items()}
    saved = {name: Weights(arrays, "own", "a", kind=name, step=2) for name, arrays in flat.items()}
    monkeypatch.setattr(evaluate, "read_sets", lambda workdir: (None, saved))
    changes = {"data__name": "synthetic", "data__synthetic_examples": 35, "model__num_classes": 1000}
    found = []
    for sets in ((), ("synthetic:test",)):
        config = tiny_config(report_card=sets, pretrained=str(weights[0]), data__eval_split="test", **changes)
        run = setup.prepare_evaluation(config, tmp_path)
        found.append(evaluate.evaluate(dataclasses.replace(run, pretrained=None)))
    own, suite = found
    assert [row["weights"] for row in suite["results"]] == ["raw", "ema"] and suite["step"] == 2
    for row, name in zip(suite["results"], ("eval", "eval_ema"), strict=True):
        assert row["count"] == own[name]["count"] == 35
        assert row["accuracy"] == pytest.approx(own[name]["accuracy"])
        assert row["accuracy_top5"] == pytest.approx(own[name]["accuracy_top5"])
        assert row["negative_log_likelihood"] == pytest.approx(own[name]["loss"], rel=1e-5)
    assert own["eval"]["loss"] != own["eval_ema"]["loss"]

    def full(path, values):
        raise OSError("No space left on device")

    monkeypatch.setattr(evaluate.logging, "write_json", full)
    with pytest.raises(RunError, match="can no longer be written: No space left"):
        evaluate.evaluate(dataclasses.replace(run, pretrained=None))


def test_what_is_not_a_number_is_empty():
    settings = checked_config().data
    suite_set = SuiteSet(settings, 3, np.ones(4, np.float32), None)
    found = dict.fromkeys(("accuracy", "accuracy_top5"), 0.5)
    found |= {"balanced_accuracy": 0.75, "count": 2, "expected_calibration_error": 0.25}
    row = evaluate._row(suite_set, "raw", found | {"loss": float("nan")})
    assert row["negative_log_likelihood"] is None and row["left_out"] == 1
    assert (
        evaluate.as_csv([row]).splitlines()[1] == f"{settings.name},{settings.eval_split},raw,4,0.5,0.5,0.75,,0.25,2,1"
    )


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
    with pytest.raises(ValueError, match="few has the splits held_out: choose one"):
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
        run.pipeline.sets[0].in_model_classes(wrong)


def test_sets_with_several_labels_are_trained_on_with_the_sigmoid_alone(tmp_path, directory):
    changes = {"data__name": "imagenet2012_real", "data__directory": str(directory), "data__train_split": "validation"}
    with pytest.raises(ValueError, match=r"several labels per image.*--config.loss=sigmoid"):
        setup.prepare(tiny_config(**changes), tmp_path)
    pipeline = make_input_pipeline(checked_config(**changes, loss="sigmoid", batch_size=4))
    assert pipeline.steps_per_epoch == 1 and pipeline.several_labels
    arguments = {"batch_size": 4, "image_size": (8, 8), "local_devices": 1, "seed": 0}
    batch = next(train_batches(checked_config(**changes, data__repeated_augmentation=1).data, **arguments))
    source = open_dataset(checked_config(**changes).data).open_split("validation")
    for index, row in zip(batch["index"][0].tolist(), batch["labels"][0], strict=True):
        assert np.flatnonzero(row).tolist() == sorted(source[index]["label"])
    assert pipeline.class_counts.sum() == sum(len(source[index]["label"]) for index in range(len(source)))
