"""configs/cifar10.py: a fair TNT and DeiT pair, and small ablations; benchmarks/cifar10.py: their tables."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cifar10 as benchmark
from configs import cifar10
from tests.training.helpers import checked_config
from tnt_jax.training import saved_config, setup
from tnt_jax.training.config import as_dict, check_config
from tnt_jax.training.state import initial_params


def model_of(argument):
    return setup.make_model(check_config(cifar10.get_config(argument)), 10)


def parameters(argument):
    model = model_of(argument)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("scale", ["full", "mini"])
def test_tnt_and_deit_differ_in_the_model_alone_and_have_the_same_size(scale):
    tnt, deit = (check_config(cifar10.get_config(f"model={kind},scale={scale}")) for kind in ("tnt", "deit"))
    differing = saved_config.differences(as_dict(tnt), as_dict(deit))
    allowed = {"name", "outer_dim", "word_size", "inner_dim", "inner_num_heads"}
    assert {key for key, _, _ in differing} <= {f"model.{key}" for key in allowed}
    sizes = [parameters(f"model={kind},scale={scale}") for kind in ("tnt", "deit")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    assert model_of(f"model=deit,scale={scale}").inner_blocks == ()


@pytest.mark.parametrize("scale", ["full", "mini"])
def test_words_keep_what_flows_into_a_sentence(scale):
    for words in cifar10.WORDS[scale]:
        model = model_of(f"scale={scale},words={words}")
        assert model.num_words == int(words) and model.num_words * model.inner_dim == 192


def test_ablations_change_what_they_name():
    config = cifar10.get_config("blocks=1,4,word_position=false,sentence_position=false,inner_heads=3")
    assert config.model.tnt_blocks == (1, 4) and config.model.inner_num_heads == 3
    assert config.model.word_position is False and config.model.sentence_position is False
    assert cifar10.get_config("blocks=all,initialization=published") == cifar10.get_config()
    assert cifar10.get_config("model=deit,initialization=scaled").model.initialization == "scaled"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model=vit", "model=vit: must be one of tnt, deit"),
        ("scale=mini,scale=full", "configs/cifar10.py: 'scale' is given twice"),
        ("model=deit,words=4", "words must be left out"),
        ("words=64", "words=64: must be one of 16, 4"),
        ("inner_heads=5", "inner_heads=5"),
        ("scale=mini,blocks=5", "block numbers from 1 to 4"),
        ("blocks=none", "use model=deit"),
        ("initialization=random", "initialization=random: must be one of published, scaled"),
    ],
)
def test_a_wrong_argument_is_named(argument, message):
    with pytest.raises(ValueError, match=message):
        cifar10.get_config(argument)


@pytest.mark.parametrize("scale", ["full", "mini"])
def test_every_ablation_is_another_model_than_the_default_one(scale):
    plain = model_of(f"model=tnt,scale={scale}")
    models = [model_of(f"{argument},scale={scale}") for argument in benchmark.ABLATIONS[scale]]
    assert len(set(models)) == len(models) and plain not in models


def test_the_table_has_a_line_for_an_argument_and_the_spread_of_its_seeds(tmp_path):
    config = as_dict(check_config(cifar10.get_config("model=deit,scale=mini")))
    config["model"]["num_classes"] = 10  # as a run resolves it
    for seed, accuracy in enumerate((0.5, 0.52)):
        workdir = tmp_path / "model=deit+scale=mini" / "30_epochs" / f"seed_{seed}"
        workdir.mkdir(parents=True)
        ends = {"eval": {"accuracy": accuracy}, "eval_ema": {"accuracy": 0.5}}
        summary = {"parameters": 925_218, "steps": 20, "seconds": 90.0, "config": config | {"seed": seed}, **ends}
        (workdir / "summary.json").write_text(json.dumps(summary))
        lines = [{"step": 10, "train/images_per_second": 540.4}, {"step": 20, "eval/accuracy": accuracy}]
        (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "model=tnt+scale=mini" / "30_epochs" / "seed_0").mkdir(parents=True)  # unfinished
    found = benchmark.finished(tmp_path)
    [*_, last] = lines = benchmark.table(found).splitlines()
    assert len(lines) == 3
    assert last == (
        "| model=deit,scale=mini | 925,218 | 15.9 M | 30 | 2 | 1 min 30 s | 540 | 51.00 ± 1.41 | 50.00 ± 0.00 |"
    )
    assert [list(benchmark.points(workdir)) for workdir in found["model=deit,scale=mini", 30.0]] == [
        [(30.0, 1.5, 50.0)],
        [(30.0, 1.5, 52.0)],
    ]


def test_pairs_are_compared_seed_by_seed(tmp_path):
    accuracies = {
        "model=tnt+scale=mini+initialization=scaled": (0.5, 0.52, 0.6),
        "model=deit+scale=mini+initialization=scaled": (0.49, 0.5),
        "model=tnt+scale=mini": (0.4,),
    }
    for argument, ends in accuracies.items():
        for seed, accuracy in enumerate(ends):
            workdir = tmp_path / argument / "12_epochs" / f"seed_{seed}"
            workdir.mkdir(parents=True)
            (workdir / "summary.json").write_text(json.dumps({"config": {}, "eval": {"accuracy": accuracy}}))
    tnt = "model=tnt,scale=mini,initialization=scaled"
    assert benchmark.paired(benchmark.finished(tmp_path)).splitlines()[2:] == [
        f"| {tnt} | {tnt.replace('tnt', 'deit')} | 12 | +1.00, +2.00 | 1.50 ± 0.71 |",
        f"| {tnt} | model=tnt,scale=mini | 12 | +10.00 | 10.00 |",
    ]


def test_seeds_of_other_settings_are_not_one_experiment(tmp_path):
    for seed, warmup in enumerate((1.0, 2.0)):
        workdir = tmp_path / "model=tnt" / "4_epochs" / f"seed_{seed}"
        workdir.mkdir(parents=True)
        (workdir / "summary.json").write_text(json.dumps({"config": {"seed": seed, "warmup_epochs": warmup}}))
    with pytest.raises(
        SystemExit, match=r"seed_0 and .*seed_1 are not seeds of one experiment: .*warmup_epochs', 1.0, 2.0"
    ):
        benchmark.finished(tmp_path)


def test_even_attention_is_zero_percent_from_even(monkeypatch, tmp_path):
    """Compares initial weights, from the seed, with final weights whose queries and keys are zero."""
    config = checked_config(model__num_classes=10, model__depth=1, model__initialization="scaled")
    model = setup.make_model(config, 10)
    params = jax.jit(lambda: initial_params(config, model))()
    ended = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * ("query_key" not in jax.tree_util.keystr(path)), params
    )
    run = SimpleNamespace(model=model, variables={"params": ended}, images=config.data, config=config)
    images = np.random.default_rng(0).integers(0, 256, (4, *model.input_size, 3), np.uint8)
    monkeypatch.setattr("tnt_jax.tools.trained.open_trained", lambda source, weights: run)
    monkeypatch.setattr("tnt_jax.tools.trained.batches_of_run", lambda trained, batch_size: iter([{"image": images}]))
    start, end = benchmark.unevenness(tmp_path)
    assert len(start) == len(end) == model.depth and min(start) > 1 and max(end) == pytest.approx(0, abs=1e-3)
    (*_, line) = benchmark.attention({("model=tnt", 4.0): [tmp_path], ("model=deit", 4.0): [tmp_path]}).splitlines()
    cells = [", ".join(f"{each:.2f}" for each in blocks) for blocks in (start, end)]
    assert line == f"| model=tnt | 4 | {cells[0]} | {cells[1]} |"
