"""The learning-rate schedule, which parameters decay, and every optimizer."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tnt_jax
from tests.training.helpers import checked_config, random_variables
from tnt_jax.models.fast.stacking import stack_blocks, unstack_blocks
from tnt_jax.pretrained.names import file_name
from tnt_jax.training import config as training_config
from tnt_jax.training import optimizer
from tnt_jax.training.config import KEYS
from tnt_jax.training.optimizer import decay_mask, layer_multipliers, make_optimizer, make_schedule, update_average

RECIPE = {
    "batch_size": 1024,
    "epochs": 300.0,
    "cooldown_epochs": 10.0,
    "warmup_epochs": 5.0,
    "learning_rate": 1e-3,
    "schedule_unit": "epoch",
}
STEPS = 1251  # an ImageNet epoch at batch 1024


def test_the_recipes_check_values():
    schedule = make_schedule(checked_config(**RECIPE), STEPS)
    assert schedule(0) == pytest.approx(1e-6, rel=1e-4)
    assert schedule(STEPS) == pytest.approx(2.008e-4, rel=1e-4)
    assert schedule(5 * STEPS) == pytest.approx(9.9932e-4, rel=1e-5)
    assert schedule(150 * STEPS) == pytest.approx((1e-3 + 1e-5) / 2, rel=1e-5)
    for epoch in (300, 305, 309):
        assert schedule(epoch * STEPS) == pytest.approx(1e-5, rel=1e-5)


def test_the_staircase_changes_between_epochs_alone():
    schedule = jax.vmap(make_schedule(checked_config(**RECIPE), STEPS))
    rates = schedule(jnp.arange(3 * STEPS)).reshape(3, STEPS)
    assert (rates == rates[:, :1]).all() and len(np.unique(rates)) == 3


def test_by_step_the_rate_is_that_of_the_fraction_of_an_epoch():
    schedule = make_schedule(checked_config(**RECIPE | {"schedule_unit": "step"}), STEPS)
    assert schedule(STEPS * 5 // 2) == pytest.approx(1e-6 + (1e-3 - 1e-6) / 2, rel=1e-3)
    half = 1e-5 + (1e-3 - 1e-5) / 2 * (1 + np.cos(np.pi * 100.5 / 300))
    assert schedule(100.5 * STEPS) == pytest.approx(half, rel=1e-5)


@pytest.mark.parametrize("name", KEYS["schedule"].choices)
def test_every_schedule_warms_up_and_stays_between_floor_and_peak(name):
    settings = checked_config(**RECIPE | {"schedule": name, "schedule_unit": "step", "cooldown_epochs": 0.0})
    rates = jax.vmap(make_schedule(settings, STEPS))(jnp.arange(round(settings.epochs * STEPS)))
    warm = round(settings.warmup_epochs * STEPS)
    assert rates[0] == pytest.approx(settings.warmup_learning_rate)
    np.testing.assert_allclose(np.diff(rates[:warm]), (settings.learning_rate - rates[0]) / warm, rtol=0.05)
    after = rates[warm:]
    assert (np.diff(after) <= 1e-9).all()
    assert after.max() <= settings.learning_rate * (1 + 1e-6) and after.min() >= settings.min_learning_rate * (1 - 1e-6)


def test_constant_warms_up_and_stays():
    constant = {"schedule": "constant", "cooldown_epochs": 0.0}
    schedule = make_schedule(checked_config(**RECIPE | constant), STEPS)
    assert schedule(STEPS) == pytest.approx(2.008e-4, rel=1e-4)
    assert schedule(5 * STEPS) == schedule(299 * STEPS) == pytest.approx(1e-3)
    assert make_schedule(checked_config(**RECIPE | constant | {"warmup_epochs": 0.0}), STEPS)(0) == pytest.approx(1e-3)


@pytest.mark.parametrize("name", ["tnt_s_patch16_224", "deit_small_patch16_224"])
def test_kernels_decay_and_nothing_else(name):
    model = tnt_jax.create_model(name)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    flat = {
        jax.tree_util.keystr(path): decays for path, decays in jax.tree_util.tree_leaves_with_path(decay_mask(params))
    }
    shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path, decays in flat.items():
        assert decays == path.endswith("['kernel']"), path
        assert not (decays and len(shapes[path]) < 2), path
    tokens = ["class_token", "sentence_position"] + ["word_position"] * name.startswith("tnt")
    for token in tokens:
        assert flat[f"['{token}']"] is False
    assert [key for key in flat if "position" in key] == [f"['{token}']" for token in tokens[1:]]
    assert flat["['block_3']['outer']['attention']['query_key']['kernel']"] is True
    assert flat["['block_3']['outer']['mlp']['dense1']['bias']"] is False
    assert flat["['norm']['scale']"] is False


def test_decay_follows_from_rank_stacked_or_not():
    params = {f"block_{i}": {"scale": jnp.zeros(3), "gate": {"weights": jnp.zeros((3, 3))}} for i in (1, 2)}
    decays = decay_mask(params)["block_1"]
    assert decays == {"scale": False, "gate": {"weights": True}}
    assert decay_mask(stack_blocks(params)) == {"blocks_1_2": decays}


def test_adamw_by_value():
    """Two updates against the formulas of arXiv 1711.05101, as PyTorch's AdamW computes them."""
    settings = checked_config(
        schedule="constant", warmup_epochs=0.0, learning_rate=0.1, weight_decay=0.05, adam_beta1=0.8, adam_beta2=0.9
    )
    optimizer = make_optimizer(settings, make_schedule(settings, 5))
    params = {"kernel": jnp.array([[2.0, -1.0]]), "bias": jnp.array([3.0])}
    state = optimizer.init(params)
    expected = {name: np.array(value, np.float64) for name, value in params.items()}
    mean = {name: 0.0 for name in params}
    square = {name: 0.0 for name in params}
    for count, scale in enumerate((1.0, -0.5), start=1):
        gradients = {"kernel": scale * jnp.array([[0.3, 0.4]]), "bias": scale * jnp.array([-0.2])}
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, gradient in gradients.items():
            gradient = np.array(gradient, np.float64)
            decay = 0.05 if name == "kernel" else 0.0
            expected[name] = expected[name] * (1 - 0.1 * decay)
            mean[name] = 0.8 * mean[name] + 0.2 * gradient
            square[name] = 0.9 * square[name] + 0.1 * gradient**2
            corrected = mean[name] / (1 - 0.8**count), square[name] / (1 - 0.9**count)
            expected[name] = expected[name] - 0.1 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    for name, value in params.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5)


def test_clipping_is_off_at_zero_and_by_global_norm_otherwise():
    params = {"kernel": jnp.zeros((1, 2))}
    gradients = {"kernel": jnp.array([[3.0, 4.0]])}  # norm 5

    def first_moment(clip):
        settings = checked_config(gradient_clip_norm=clip)
        optimizer = make_optimizer(settings, make_schedule(settings, 5))
        _, state = optimizer.update(gradients, optimizer.init(params), params)
        return optax.tree.get(state, "mu")["kernel"]

    np.testing.assert_allclose(first_moment(0.0), [[0.3, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(first_moment(1.0), [[0.06, 0.08]], rtol=1e-6)
    np.testing.assert_allclose(first_moment(10.0), [[0.3, 0.4]], rtol=1e-6)


def test_moving_average_by_value():
    average = update_average({"kernel": jnp.array([1.0, 2.0])}, {"kernel": jnp.array([3.0, 0.0])}, 0.75)
    np.testing.assert_allclose(average["kernel"], [1.5, 1.5])


def test_the_average_is_warmed_up_where_the_key_says_so():
    """With the key min(decay, (1 + t) / (10 + t)), without it the decay itself."""
    warm = checked_config(ema_decay=0.9, ema_warmup=True)
    found = [float(optimizer.average_decay(warm, jnp.int32(step))) for step in (0, 1, 8, 79, 80, 81, 10**6)]
    np.testing.assert_allclose(found, [0.1, 2 / 11, 0.5, 80 / 89, 0.9, 0.9, 0.9], rtol=1e-6)
    assert optimizer.average_decay(checked_config(ema_decay=0.9), 0) == 0.9


@pytest.mark.parametrize("warmup", [False, True])
def test_the_share_of_the_start_is_what_the_average_keeps_of_it(warmup):
    settings = checked_config(ema_decay=0.9, ema_warmup=warmup)
    average = jnp.float32(1.0)
    for step in range(7):
        average = optimizer.update_average(average, 0.0, optimizer.average_decay(settings, jnp.int32(step)))
    assert optimizer.start_in_average(settings, 7) == pytest.approx(float(average), rel=1e-5)
    assert (float(average) > 0.4) != warmup


FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
OPTIMIZERS = training_config.KEYS["optimizer"].choices


def small_params(seed=0):
    """Draws parameters of every kind, in two blocks of equal shapes; those of a TNT take half a minute to compile."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)  # noqa: E731
    block = lambda: {"mlp": {"kernel": draw(4, 6), "bias": draw(6)}}  # noqa: E731
    return {
        "word_embedding": {"kernel": draw(7, 7, 3, 2)},
        "sentence_position": draw(5, 4),
        "block_1": block(),
        "block_2": block(),
        "head": {"kernel": draw(4, 3)},
    }


def updates_of(settings, params, gradients):
    """Updates with each of the gradients in turn -> (parameters, optimizer state)."""
    made = make_optimizer(settings, make_schedule(settings, STEPS))

    @jax.jit
    def update(params, state, gradient):
        updates, state = made.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = made.init(params)
    for gradient in gradients:
        params, state = update(params, state, gradient)
    return params, state


SETTINGS = {"schedule": "constant", "warmup_epochs": 0.0, "gradient_clip_norm": 1.0, "learning_rate": 1e-2}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_blocks_are_updated_as_if_they_were_not(name):
    params, settings = small_params(), checked_config(optimizer=name, **SETTINGS)
    gradients = [small_params(seed) for seed in (1, 2)]
    one, state = updates_of(settings, params, gradients)
    stacked, stacked_state = updates_of(settings, stack_blocks(params), list(map(stack_blocks, gradients)))
    assert "blocks_1_2" in stacked and "block_1" in one
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, unstack_blocks(stacked), one)
    assert jax.tree.structure(stack_blocks(state)) == jax.tree.structure(stacked_state)
    jax.tree.map(close, unstack_blocks(stacked_state), state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_decays_what_the_mask_says_and_nothing_else(name):
    """With zero gradients only decay moves parameters: towards zero by rate times decay, or by LAMB's ratio."""
    params, settings = small_params(), checked_config(optimizer=name, **SETTINGS, weight_decay=0.1)
    moved, _ = updates_of(settings, params, [jax.tree.map(jnp.zeros_like, params)])
    factor = {"sgd": 1 - 1e-2 * 0.1 * 1.9, "lamb": 1 - 1e-2}.get(name, 1 - 1e-2 * 0.1)  # Nesterov: 1.9 times
    for (path, new), old, decays in zip(
        jax.tree_util.tree_leaves_with_path(moved),
        jax.tree.leaves(params),
        jax.tree.leaves(decay_mask(params)),
        strict=True,
    ):
        np.testing.assert_allclose(new, old * (factor if decays else 1.0), rtol=1e-5, err_msg=str(path))


def test_muon_takes_the_dense_kernels_of_blocks_and_gives_them_updates_of_adamws_size():
    params, settings = small_params(), checked_config(optimizer="muon", **SETTINGS, weight_decay=0.0)
    moved, state = updates_of(settings, params, [small_params(1)])
    muon = state[1][0].inner_states["muon"].inner_state[0]
    assert [leaf.shape for leaf in jax.tree.leaves(muon.mu)] == [(4, 6), (4, 6)]
    adam = state[1][0].inner_states["adam"].inner_state[0]
    assert {leaf.shape for leaf in jax.tree.leaves(adam.mu)} == {(6,), (4, 3), (5, 4), (7, 7, 3, 2)}
    update = (moved["block_1"]["mlp"]["kernel"] - params["block_1"]["mlp"]["kernel"]) / 1e-2
    # Newton-Schulz leaves singular values of about 0.7 to 1.2.
    assert 0.2 * 0.6 < (update**2).mean() ** 0.5 < 0.2 * 1.3
    singular = np.linalg.svd(update, compute_uv=False)
    assert singular.max() < 2 * singular.min()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_the_rate_of_the_schedule_and_lowers_a_loss(name):
    params = {"dense": {"kernel": jnp.ones((3, 4))}, "norm": {"bias": jnp.ones(4)}}
    rate = 0.05 if name != "sgd" else 0.2
    settings = checked_config(**SETTINGS | {"learning_rate": rate, "optimizer": name, "weight_decay": 1e-3})
    loss = lambda params: sum((leaf**2).mean() for leaf in jax.tree.leaves(params))  # noqa: E731
    made = make_optimizer(settings, make_schedule(settings, STEPS))
    state, now = made.init(params), params
    for _ in range(10):
        updates, state = made.update(jax.grad(loss)(now), state, now)
        now = optax.apply_updates(now, updates)
    assert loss(now) < 0.7 * loss(params)
    counters = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))
    assert [int(each.count) for each in counters if isinstance(each, optax.ScaleByScheduleState)] == [10]


@pytest.mark.parametrize("name", ["tnt_tiny", "deit_tiny_depth2"])
def test_layer_multipliers_are_timms(name):
    settings = {"tnt_tiny": ("tnt_s_patch16_224", 3, "timm"), "deit_tiny_depth2": ("deit_tiny_patch16_224", 2, "vit")}
    base, depth, scheme = settings[name]
    sizes = {"image_size": 32, "patch_size": 8, "depth": depth, "outer_dim": 48, "outer_num_heads": 3}
    more = {"word_size": 2, "inner_dim": 12, "inner_num_heads": 2} if scheme == "timm" else {}
    model = tnt_jax.create_model(base, num_classes=10, **sizes, **more)
    params = random_variables(model, 32)["params"]
    ours = {
        file_name(tuple(entry.key for entry in path), scheme): factor
        for path, factor in jax.tree_util.tree_leaves_with_path(layer_multipliers(params, 0.75))
    }
    assert ours == json.loads((FIXTURES / "layer_decay.json").read_text())[name]
    stacked = layer_multipliers(stack_blocks(params), 0.75)
    assert stacked[f"blocks_1_{depth}"]["outer"]["norm1"]["scale"].shape == (depth, 1)
    plain = layer_multipliers(params, 0.75)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.squeeze(a), b), unstack_blocks(stacked), plain)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layer_decay_scales_every_update_decay_included(name):
    params, gradients = small_params(), [small_params(1)]
    settings = SETTINGS | {"optimizer": name}
    alike, _ = updates_of(checked_config(**settings), params, gradients)
    scaled, _ = updates_of(checked_config(**settings, layer_decay=0.5), params, gradients)

    def check(factor, one, two, old):
        np.testing.assert_allclose(two - old, (one - old) * factor, rtol=1e-3, atol=1e-6)

    jax.tree.map(check, layer_multipliers(params, 0.5), alike, scaled, params)
