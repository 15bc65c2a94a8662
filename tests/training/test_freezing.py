"""Frozen parameters: chosen by name, unchanged bit for bit, without optimizer state, stacked or not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tnt_jax
from tests.training.helpers import (
    NUM_CLASSES,
    TinyModel,
    TinyPipeline,
    assert_same_end,
    batch,
    checked_config,
    random_variables,
    tiny_config,
    train_some,
)
from tests.training.runs import INTERVALS, DyingPipeline, Killed, make_run
from tnt_jax.models.fast.stacking import stack_blocks, unstack_blocks
from tnt_jax.training import config as training_config
from tnt_jax.training import loop, setup, steps
from tnt_jax.training.freezing import check_freeze, frozen_note, is_frozen, join, split
from tnt_jax.training.optimizer import make_optimizer, make_schedule
from tnt_jax.training.state import initial_state, replicate, stack_layers, unreplicate

HEAD_ALONE = ("(?!head/).*",)
BATCHES = [batch(seed) for seed in range(3)]


def parameter_names(tree):
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]


def named(tree):
    return dict(zip(parameter_names(tree), jax.tree.leaves(tree), strict=True))


@pytest.fixture(scope="module")
def params():
    return random_variables(tnt_jax.create_model(**checked_config(model__depth=3).model.arguments()))["params"]


@pytest.mark.parametrize(
    "patterns", [HEAD_ALONE, ("block_[12]/.*",), ("block_2/outer/mlp/.*", "norm/scale"), (".*bias",)]
)
@pytest.mark.parametrize("stacked", [False, True])
def test_both_parts_are_the_whole_and_stack_alike(params, patterns, stacked):
    tree = stack_blocks(params) if stacked else params
    trained, frozen = split(tree, patterns)
    jax.tree.map(np.testing.assert_array_equal, join(trained, frozen), tree)
    assert jax.tree.structure(join(trained, frozen)) == jax.tree.structure(tree)
    # The optimizer's state is made block by block and then stacked: it must have the structure of the stacked step.
    alone, _ = split(params, patterns)
    assert jax.tree.structure(stack_blocks(alone) if stacked else alone) == jax.tree.structure(trained)
    expected = {name for name in parameter_names(params) if not is_frozen(name, patterns)}
    assert set(parameter_names(unstack_blocks(trained))) == expected


def test_without_patterns_nothing_is_touched(params):
    assert split(params, ())[0] is params and join(*split(params, ())) is params


OPTIMIZERS = training_config.KEYS["optimizer"].choices


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_stay_to_the_bit_and_take_no_state(name):
    settings = checked_config(optimizer=name, freeze=("dense/.*", "norm/scale"), weight_decay=0.5, warmup_epochs=0.0)
    start, _ = train_some(settings, [])
    before = named(unreplicate(start.params))
    end, results = train_some(settings, BATCHES)
    for group in (end.params, end.ema_params):
        for parameter, value in named(unreplicate(group)).items():
            assert (value == before[parameter]).all() == is_frozen(parameter, settings.freeze), parameter
    shapes = [leaf.shape for leaf in jax.tree.leaves(unreplicate(end.opt_state))]
    assert before["dense/kernel"].shape not in shapes and before["head/kernel"].shape in shapes
    whole, _ = train_some(checked_config(optimizer=name), [])
    of_frozen = [
        path for path in parameter_names(whole.opt_state) if re.search("/(dense/kernel|dense/bias|norm/scale)$", path)
    ]
    assert 0 < len(of_frozen) == len(jax.tree.leaves(whole.opt_state)) - len(shapes)


@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_a_skipped_step_leaves_weights_average_and_optimizer_as_they_were(name):
    settings = checked_config(optimizer=name, freeze=("dense/bias",), layer_decay=0.9, nonfinite="skip")
    before = jax.device_get(train_some(settings, BATCHES[:2])[0])
    spoilt = BATCHES[2] | {"mask": BATCHES[2]["mask"] * np.nan}
    after, results = train_some(settings, [*BATCHES[:2], spoilt])
    after = jax.device_get(after)
    assert not results[-1]["finite"][0] and (after.step == 3).all()
    for group in ("params", "ema_params"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, group), getattr(after, group))
    is_schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)  # noqa: E731
    for old, new in zip(
        *(jax.tree.leaves(each.opt_state, is_leaf=is_schedule) for each in (before, after)), strict=True
    ):
        if is_schedule(old):
            assert (new.count == old.count + 1).all()
        else:
            np.testing.assert_array_equal(old, new)


def test_the_gradient_is_that_of_the_trained_parameters():
    """Gradients of frozen parameters count in no norm, and XLA need not compute them."""
    frozen = checked_config(freeze=HEAD_ALONE)
    _, alone = train_some(frozen, BATCHES[:1])
    _, whole = train_some(checked_config(), BATCHES[:1])
    assert 0 < float(alone[0]["gradient_norm"][0]) < float(whole[0]["gradient_norm"][0])
    assert float(alone[0]["loss"][0]) == pytest.approx(float(whole[0]["loss"][0]), rel=1e-6)

    def operations(settings):
        model = TinyModel()
        images, targets, mask = jnp.zeros((4, 8, 8, 3)), jnp.zeros((4, NUM_CLASSES)), jnp.ones(4)
        trained, held = split(model.init(jax.random.key(0), images)["params"], settings.freeze)

        def gradients(trained):
            return steps.loss_and_gradients(
                trained, jax.random.key(0), images, targets, mask, model=model, config=settings, frozen=held
            )

        return jax.jit(gradients).lower(trained).compile().cost_analysis()["flops"]

    assert operations(frozen) < 0.75 * operations(checked_config())


def test_a_scan_trains_what_the_definition_trains_where_blocks_of_a_stack_are_not_frozen_alike():
    patterns = ("block_2/outer/mlp/.*", "class_token")

    def train(scan):
        changes = {"model__scan": scan, "model__depth": 2, "model__num_classes": NUM_CLASSES}
        settings = checked_config(freeze=patterns, warmup_epochs=0.0, layer_decay=0.7, **changes)
        model = tnt_jax.create_model(**settings.model.arguments())
        schedule = make_schedule(settings, 5)
        optimizer = make_optimizer(settings, schedule)
        start = initial_state(settings, model, optimizer, random_variables(model.clone())["params"])
        devices = jax.local_devices()[:1]
        step = steps.make_train_step(settings, model, optimizer, schedule, log_every_steps=1, devices=devices)
        state = replicate(stack_layers(start, settings), devices)
        for each in BATCHES:
            state, _ = step(state, each)
        return unreplicate(state)

    whole, scanned = train(False), train(True)
    assert "blocks_1_2" in scanned.params and "block_2" in whole.params
    scanned = unstack_blocks(scanned)
    assert jax.tree.structure(whole) == jax.tree.structure(scanned)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole.params, scanned.params)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["muon", "lamb"])
def test_a_run_with_frozen_parameters_resumes_to_the_same_bits(tmp_path, capsys, name):
    changes = {"freeze": ("norm/.*", "class_token"), "optimizer": name, "layer_decay": 0.8}
    loop.train(make_run(tmp_path / "whole", **changes))
    assert "parameters are trained; frozen at random values (config.pretrained is empty): class_token, norm\n" in (
        capsys.readouterr().out
    )
    pipeline = DyingPipeline(tiny_config(**INTERVALS), 7)
    with pytest.raises(Killed):
        loop.train(make_run(tmp_path / "stopped", pipeline, **changes))
    loop.train(make_run(tmp_path / "stopped", **changes))
    assert_same_end(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("block_7/.*",), "'block_7/.*' matches no parameter. Similar names: block_"),
        (("block_1",), "'block_1' matches no parameter. A pattern must match a whole name: 'block_1/.*'"),
        (("block",), "'block' matches no parameter. Similar names: block_"),
        (("blocks_1/inner/norm/.*",), "Similar names: block_1/inner/norm"),
        (("xyzzy",), "Names look like "),
        ((".*",), "matches every parameter: nothing is left to train"),
        (("head/.*", "(?!head/).*"), "matches every parameter"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_near_names(params, patterns, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        check_freeze(checked_config(freeze=patterns), params)


def test_a_run_is_refused_before_anything_is_written(tmp_path):
    config = tiny_config(freeze=("nothing",))
    with pytest.raises(ValueError, match="config.freeze: 'nothing' matches no parameter"):
        setup.prepare(config, tmp_path / "run", TinyPipeline(config))
    assert not (tmp_path / "run").exists()


def test_the_note_counts_and_names(params):
    note = frozen_note(checked_config(freeze=("block_1/.*", "block_2/inner/.*", "norm/scale"), pretrained="x"), params)
    held = sum(leaf.size for leaf in jax.tree.leaves([params["block_1"], params["block_2"]["inner"]])) + 4
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert note == f"{total - held:,} of {total:,} parameters are trained; frozen: block_1, block_2/inner, norm/scale"
    assert re.search(r"block_1/\S+/bias, .* and \d+ more$", frozen_note(checked_config(freeze=(".*bias",)), params))
