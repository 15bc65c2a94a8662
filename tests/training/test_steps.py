"""One step: the same on any number of devices and in any number of parts; sums restart after each log line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnt_jax
from tests.training.helpers import NUM_CLASSES, TinyModel, batch, checked_config, compiled, random_variables, train_some
from tnt_jax.models.fast.attention import broadcast_attention, dot_attention, einsum_attention
from tnt_jax.models.layers import attend, over_sentences
from tnt_jax.training import steps
from tnt_jax.training.device_augment import normalize
from tnt_jax.training.evaluation import means
from tnt_jax.training.losses import smooth_labels
from tnt_jax.training.optimizer import make_optimizer, make_schedule
from tnt_jax.training.state import initial_state, replicate, unreplicate


def losses_of(results):
    return [means({"loss": unreplicate(result["sums"]["loss"])})["loss"] for result in results]


def on_devices(batches, devices):
    return [jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[2:]), each) for each in batches]


BATCHES = [batch(seed) for seed in range(20)]
MIXING = {"mixing__mixup_alpha": 0.8, "mixing__cutmix_alpha": 1.0, "mixing__erase_probability": 0.25}


@pytest.mark.parametrize("changes", [{}, MIXING])
def test_one_and_eight_devices_have_the_same_losses_over_20_steps(changes):
    settings = checked_config(**changes)
    one_state, one = train_some(settings, BATCHES, log_every_steps=1)
    many_state, many = train_some(settings, on_devices(BATCHES, 8), devices=jax.local_devices()[:8], log_every_steps=1)
    np.testing.assert_allclose(losses_of(one), losses_of(many), rtol=2e-5)
    for a, b in zip(jax.tree.leaves(one_state.params), jax.tree.leaves(many_state.params), strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=2e-4)
        assert (np.array(b) == np.array(b[:1])).all()  # every device holds the same bits
    assert losses_of(one)[-1] < losses_of(one)[0]


def train_and_evaluate_tnt(devices):
    """Trains a TNT of one block on so many devices -> (losses of 20 steps, sums over 35 examples in batches of 16)."""
    settings = checked_config(model__num_classes=NUM_CLASSES, model__inner_dim=4, model__outer_dim=16)
    model = tnt_jax.create_model(**settings.model.arguments())
    schedule = make_schedule(settings, steps_per_epoch=5)
    optimizer = make_optimizer(settings, schedule)
    chosen = jax.local_devices()[:devices]
    state = replicate(initial_state(settings, model, optimizer, random_variables(model)["params"]), chosen)
    step = steps.make_train_step(settings, model, optimizer, schedule, log_every_steps=1, devices=chosen)
    results = []
    for each in on_devices(BATCHES, devices):
        state, result = step(state, each)
        results.append(result)
    evaluate = steps.make_eval_step(settings, model, devices=chosen)
    held_out = on_devices([batch(seed, real=real) for seed, real in ((101, 16), (102, 16), (103, 3))], devices)
    classes = np.ones(NUM_CLASSES, np.float32)
    sums = [unreplicate(evaluate(state.params, each, classes)) for each in held_out]
    return losses_of(results), jax.tree.map(lambda *parts: np.sum(parts), *sums)


def test_a_tnt_is_trained_and_evaluated_alike_on_one_and_eight_devices():
    """Float32 sums in another order change the loss by a measured 1e-7; a hundred times that is allowed."""
    one, one_sums = train_and_evaluate_tnt(1)
    eight, eight_sums = train_and_evaluate_tnt(8)
    np.testing.assert_allclose(one, eight, rtol=1e-5)
    assert one[-1] < one[0] - 0.2
    assert one_sums["accuracy"] == eight_sums["accuracy"] and one_sums["count"] == eight_sums["count"] == 35
    assert one_sums["loss"] == pytest.approx(eight_sums["loss"], rel=1e-5)


def test_a_skipped_step_leaves_everything_but_the_step_and_the_schedule():
    settings = checked_config(nonfinite="skip", schedule_unit="step")
    sound, _ = train_some(settings, BATCHES[:3])
    before = jax.device_get(sound)  # the next call donates its buffers
    spoilt = BATCHES[3] | {"mask": BATCHES[3]["mask"] * np.nan}
    _, step = compiled(settings, TinyModel(), tuple(jax.local_devices()[:1]), 5)
    after, result = step(sound, spoilt)
    assert not unreplicate(result["finite"]) and np.isnan(unreplicate(result["loss"]))
    for name in ("params", "ema_params", "metrics", "key"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), jax.device_get(getattr(after, name)))
    adam, _, schedule = jax.device_get(after.opt_state)
    jax.tree.map(np.testing.assert_array_equal, before.opt_state[0], adam)
    assert after.step[0] == schedule.count[0] == 4 and adam.count[0] == 3
    # A sound step is the same under both settings.
    stopping, _ = train_some(checked_config(schedule_unit="step"), BATCHES[:3])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), jax.device_get(stopping.params), before.params
    )


def test_accumulating_gives_the_gradient_of_the_whole_batch():
    params = TinyModel().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    made = jax.tree.map(lambda x: x[0], batch(3, real=13))
    images = normalize(made["image"], checked_config().data)
    targets = smooth_labels(made["label"], NUM_CLASSES, 0.1)

    def in_parts(count):
        settings = checked_config(accumulation_steps=count)
        whole = functools.partial(steps.loss_and_gradients, model=TinyModel(), config=settings)
        return jax.jit(whole)(params, jax.random.key(1), images, targets, made["mask"])

    gradients, sums = in_parts(1)
    assert sums["loss"][1] == 13
    for count in (2, 8):
        part_gradients, part_sums = in_parts(count)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), sums, part_sums)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, part_gradients)


def test_the_gradient_is_that_of_the_mean_loss_of_the_examples_that_count():
    """Two devices with 8 and 1 real examples are weighted 8 to 1."""
    made = [batch(0, real=9)]
    settings = checked_config()
    _, one = train_some(settings, made, log_every_steps=1)
    _, two = train_some(settings, on_devices(made, 2), devices=jax.local_devices()[:2], log_every_steps=1)
    for results in (one, two):
        assert unreplicate(results[0]["sums"]["loss"])[1] == 9
    norms = [float(unreplicate(results[0]["sums"]["gradient_norm"])[0]) for results in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_sums_start_anew_after_every_line_of_the_log():
    settings = checked_config()
    _, single = train_some(settings, BATCHES[:7], log_every_steps=1)
    _, three = train_some(settings, BATCHES[:7], log_every_steps=3)
    each = losses_of(single)
    found = losses_of(three)
    for step, mean in enumerate(found):
        first = step // 3 * 3
        assert mean == pytest.approx(np.mean(each[first : step + 1]), rel=1e-5)
    assert unreplicate(three[5]["sums"])["gradient_norm"][1] == 3


@pytest.mark.parametrize(("warmup", "decays"), [(False, (0.75, 0.75)), (True, (0.1, 2 / 11))])
def test_average_of_the_weights_by_value(warmup, decays):
    settings = checked_config(ema_decay=0.75, ema_warmup=warmup)
    start, _ = train_some(settings, [])
    params = [unreplicate(start.params)]
    for count in (1, 2):
        state, _ = train_some(settings, BATCHES[:count])
        params.append(unreplicate(state.params))
    first, second = decays
    expected = jax.tree.map(lambda a, b, c: second * (first * a + (1 - first) * b) + (1 - second) * c, *params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), unreplicate(state.ema_params), expected)
    assert train_some(checked_config(ema_decay=0.0), BATCHES[:1])[0].ema_params is None


def test_the_learning_rate_is_the_one_of_the_update():
    _, results = train_some(checked_config(), BATCHES[:6])
    assert unreplicate(results[0]["learning_rate"]) == pytest.approx(1e-6)
    assert unreplicate(results[5]["learning_rate"]) > 8e-3  # the second epoch; an epoch has 5 steps


def test_a_number_that_is_none_is_reported():
    spoilt = batch(1)
    spoilt["mask"][0, 3] = np.nan
    _, results = train_some(checked_config(), [batch(0), spoilt])
    assert [bool(unreplicate(result["finite"])) for result in results] == [True, False]


def test_state_is_donated():
    start, step = compiled(checked_config(), TinyModel(), tuple(jax.local_devices()[:1]), 5)
    state = start()
    step(state, BATCHES[0])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_order_of_mixing_and_erasing():
    """If erasing comes first, an image's noise shows in its partner; if it comes last, a box is pure noise."""
    black_batch = jax.tree.map(jnp.zeros_like, batch(0))
    boxes = {}
    for order in ("mix_erase", "erase_mix"):
        chosen = checked_config(mixing__order=order, mixing__mixup_alpha=0.8, mixing__erase_probability=1.0)
        augment = functools.partial(steps.augment, num_classes=4, config=chosen)
        on_one = steps.over_devices(augment, devices=jax.local_devices()[:1], in_axes=(None, 0))
        boxes[order] = np.array(on_one(jax.random.key(2), black_batch)[0])
    black = -1.0  # (0 - 0.5) / 0.5
    pure = boxes["mix_erase"] != black
    assert boxes["mix_erase"][pure].std() == pytest.approx(1, abs=0.1)
    assert (boxes["erase_mix"] != black).sum() > 1.2 * pure.sum()  # an image's own box and its partner's


def test_images_are_normalised_on_the_device():
    settings = checked_config(data__mean=(0.1, 0.2, 0.3), data__std=(0.5, 0.25, 0.125))
    images = normalize(jnp.full((1, 1, 1, 3), 51, jnp.uint8), settings.data)
    np.testing.assert_allclose(images[0, 0, 0], [(0.2 - 0.1) / 0.5, 0.0, (0.2 - 0.3) / 0.125], atol=1e-6)


def test_evaluation_is_the_same_on_any_number_of_devices_and_counts_each_example_once():
    model = TinyModel()
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    made = batch(5, real=11)
    logits = model.apply({"params": params}, normalize(made["image"][0], checked_config().data))
    correct = (logits.argmax(-1) == made["label"][0])[:11].sum()
    for devices in (1, 4, 8):
        chosen = jax.local_devices()[:devices]
        step = steps.make_eval_step(checked_config(), model, devices=chosen)
        classes = np.ones(NUM_CLASSES, np.float32)
        sums = unreplicate(step(replicate(params, chosen), on_devices([made], devices)[0], classes))
        assert sums["accuracy"] == correct and sums["count"] == 11
        assert sums["accuracy_top5"] == 11  # four classes
        plain = -float(jax.nn.log_softmax(logits)[np.arange(11), made["label"][0][:11]].sum())
        assert sums["loss"] == pytest.approx(plain, rel=1e-5)  # without label smoothing


@pytest.mark.parametrize(
    ("implementation", "device_kind", "words", "sentences", "kernel"),
    [
        ("auto", "TPU v5 lite", broadcast_attention, einsum_attention, True),
        ("auto", "TPU v4", broadcast_attention, einsum_attention, False),
        ("auto", "NVIDIA H200", dot_attention, dot_attention, False),
        ("auto", "cpu", dot_attention, dot_attention, False),
        ("xla", "TPU v6 lite", broadcast_attention, einsum_attention, False),
        ("reference", "TPU v6 lite", attend, attend, False),
    ],
)
def test_how_the_blocks_are_computed_follows_the_device(implementation, device_kind, words, sentences, kernel):
    class Device:
        pass

    Device.device_kind = device_kind
    model = tnt_jax.create_model("tnt_ti_patch16_224", inner_implementation=implementation)
    model = steps.for_platform(model, [Device])
    ops = model.ops(model.config)
    assert (ops.inner.attend, ops.outer.attend) == (words, sentences)
    assert (ops.over_sentences is not over_sentences) == kernel
