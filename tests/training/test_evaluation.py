"""Each metric against NumPy; each example once, on any number of devices; all weights over the same batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tests.training.helpers import TinyModel, batch, checked_config, random_variables
from tnt_jax.training import evaluation, steps
from tnt_jax.training.state import replicate

LOGITS = jnp.array([[0.1, 0.9, 0.0, 0.5, 0.2, 0.3], [0.9, 0.1, 0.8, 0.7, 0.6, 0.5], [1.0, 0, 0, 0, 0, 0]])


def test_the_largest_logits_are_compared_with_one_label_or_several():
    assert evaluation.top_k_correct(LOGITS, jnp.array([1, 2, 0])).tolist() == [True, False, True]
    assert evaluation.top_k_correct(LOGITS, jnp.array([2, 1, 0]), 5).tolist() == [False, False, True]
    assert evaluation.top_k_correct(LOGITS[:, :3], jnp.array([2, 1, 0]), 5).all()  # the top 5 of three classes are all
    several = jnp.zeros((3, 6), bool).at[0, 3].set(True).at[0, 1].set(True).at[1, 1].set(True)
    assert evaluation.top_k_correct(LOGITS, several).tolist() == [True, False, False]


def by_hand(logits, labels, classes=None):
    """logits [n, K], labels (a set of classes per image) -> the metrics in float64, image by image."""
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
    result = {}
    if all(len(wanted) == 1 for wanted in labels):
        classes = [next(iter(wanted)) for wanted in labels]
        recalls = [
            np.mean([right for right, each in zip(top1, classes, strict=True) if each == k]) for k in set(classes)
        ]
        result["balanced_accuracy"] = np.mean(recalls)
    gaps = [
        len(found) * abs(np.mean([c for c, _ in found]) - np.mean([r for _, r in found])) for found in bins.values()
    ]
    return result | {
        "accuracy": np.mean(top1),
        "accuracy_top5": np.mean(top5),
        "loss": np.mean(likelihood),
        "expected_calibration_error": sum(gaps) / len(logits),
        "count": len(logits),
    }


COMPILED = jax.jit(evaluation.batch_sums, static_argnums=4)


def measured(logits, labels, mask=None, classes=None):
    """Computes the metrics, padded to 300 images and 12 classes so that all calls share a compiled program."""
    images, more = len(logits), 300 - len(logits)
    allowed = np.zeros(12, np.float32)
    allowed[list(range(logits.shape[1]) if classes is None else classes)] = 1
    logits = np.pad(logits, ((0, more), (0, 12 - logits.shape[1])))
    labels = np.pad(labels, ((0, more), (0, 0))[: labels.ndim])
    mask = np.pad(np.ones(images, np.float32) if mask is None else mask, (0, more))
    sums = COMPILED(logits, labels, mask, allowed, evaluation.CALIBRATION_BINS)
    return evaluation.finish({name: np.asarray(value, np.float64) for name, value in sums.items()})


def multi_hot(labels, classes):
    return np.array([[number in wanted for number in range(classes)] for wanted in labels], np.uint8)


def test_measures_by_value():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.55, 0.35], [0.3, 0.25, 0.45], [0.62, 0.3, 0.08]], np.float32))
    found = measured(logits, np.array([0, 2, 2, 1]))
    # 0.62 lies in the bin (9/15, 10/15], 0.7 in (10/15, 11/15], 0.55 in (8/15, 9/15], 0.45 in (6/15, 7/15].
    assert found == {
        "accuracy": pytest.approx(0.5),
        "accuracy_top5": 1.0,
        "balanced_accuracy": pytest.approx((1 + 0.5 + 0) / 3),
        "loss": pytest.approx(-np.log([0.7, 0.35, 0.45, 0.3]).mean(), rel=1e-6),
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
    settings, model = checked_config(), TinyModel()
    params = random_variables(model)["params"]
    used = jax.local_devices()[:devices]
    step = steps.make_eval_step(settings, model, devices=used, calibration_bins=evaluation.CALIBRATION_BINS)
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
    assert evaluation.finish(total) == pytest.approx(by_hand(np.concatenate(logits), labels), rel=1e-4)


def eval_step(params, made, classes):
    """Counts the examples whose label is `params`; replicated over 8 devices like the pmapped step."""
    label, real = np.asarray(made["label"]), np.asarray(made["mask"])
    correct = ((label == params) * real).sum()
    sums = {"accuracy": correct, "accuracy_top5": correct, "loss": 2 * real.sum(), "count": real.sum()}
    return {name: jnp.full((8,), value) for name, value in sums.items()}


def test_sums_over_ragged_batches():
    made = [batch(0, 16, devices=8), batch(1, 16, devices=8), batch(2, 16, 3, devices=8)]
    labels = np.concatenate([each["label"].ravel()[each["mask"].ravel() > 0] for each in made])
    weights = {"eval": 0, "eval_ema": 2}
    results = evaluation.evaluate_weights(eval_step, weights, iter(made), np.ones(4), 2)
    accuracy = pytest.approx((labels == 0).mean())
    assert results["eval"] == {"accuracy": accuracy, "accuracy_top5": accuracy, "loss": 2.0, "count": 35}
    assert results["eval_ema"]["accuracy"] == pytest.approx((labels == 2).mean())
    interrupted = iter([False, True])
    assert evaluation.evaluate_weights(eval_step, weights, iter(made), np.ones(4), 2, lambda: next(interrupted)) is None


def test_an_empty_split_is_an_error():
    with pytest.raises(ValueError, match="eval_split"):
        evaluation.evaluate_weights(eval_step, {"eval": 0}, iter([]), np.ones(4), 2)


def test_no_example_has_no_mean():
    found = evaluation.means({"accuracy": (1.0, 4.0), "loss": (0.0, 0.0)})
    assert found["accuracy"] == 0.25 and np.isnan(found["loss"])


def test_of_classes_of_one_size_the_balanced_accuracy_is_the_accuracy():
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (120, 12)).astype(np.float32)
    found = measured(logits, np.arange(120) % 12)
    assert found["balanced_accuracy"] == pytest.approx(found["accuracy"], rel=1e-6)
    unbalanced = measured(logits, np.where(np.arange(120) < 100, 0, np.arange(120) % 12))
    assert unbalanced["balanced_accuracy"] != pytest.approx(unbalanced["accuracy"], abs=0.01)


@pytest.mark.parametrize("devices", [1, 4])
def test_several_labels_have_scikit_learns_mean_average_precision(devices, monkeypatch):
    """35 images in batches of 16, some without a label; class 3 never occurs."""
    monkeypatch.setattr(evaluation, "prefetch", lambda batches, size: batches)  # it uses all devices
    settings, model = checked_config(loss="sigmoid", bce_sum_classes=True), TinyModel()
    params = random_variables(model)["params"]
    used, rng = jax.local_devices()[:devices], np.random.default_rng(5)
    batches = [batch(seed, 16, real, devices) for seed, real in ((7, 16), (8, 16), (9, 3))]
    for made in batches:
        made["labels"] = (rng.random((devices, 16 // devices, 3)) < 0.4).astype(np.uint8)
    step = steps.make_eval_step(settings, model, devices=used)
    rows = {name: np.concatenate([made[name].reshape(16, *made[name].shape[2:]) for made in batches]) for name in made}
    rows = {name: field[rows["mask"] > 0] for name, field in rows.items()}
    images = (rows["image"] / 255 - np.array(settings.data.mean)) / np.array(settings.data.std)
    logits = np.asarray(model.apply({"params": params}, images.astype(np.float32)), np.float64)
    present = np.pad(rows["labels"], ((0, 0), (0, 1)))
    weights = {"eval": replicate(params, used)}
    (found,) = evaluation.evaluate_weights(step, weights, iter(batches), np.ones(4, np.float32), 2).values()
    named = evaluation.with_class_names(found, ("red", "green"))
    assert list(named["average_precision"]) == ["red", "green", "2", "3"] and named["average_precision"]["3"] is None
    expected = [average_precision_score(present[:, k], logits[:, k]) for k in range(3)]
    assert found["average_precision"][:3] == pytest.approx(expected)
    assert found["mean_average_precision"] == pytest.approx(np.mean(expected)) and found["count"] == 35
    assert found["subset_accuracy"] == pytest.approx(((logits > 0) == present).all(-1).mean())
    losses = np.logaddexp(0, -logits) * present + np.logaddexp(0, logits) * (1 - present)
    assert found["loss"] == pytest.approx(losses.sum(-1).mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(present[np.arange(35), logits.argmax(1)].mean())


def test_scores_that_are_no_numbers_rank_last():
    scores = np.array([[np.nan, 1.0], [1.0, np.nan], [2.0, np.inf]], np.float32)
    assert evaluation.average_precisions(scores, np.array([[1, 0], [1, 0], [1, 1]])) == [1.0, 1.0]
    assert evaluation.average_precisions(np.full((4, 1), np.nan), np.array([[1], [0], [0], [0]])) == [0.25]


def test_a_split_without_any_label_has_no_precision():
    with pytest.raises(ValueError, match="has a label"):
        evaluation.finish_several(np.zeros((2, 3)), np.zeros((2, 3)))
