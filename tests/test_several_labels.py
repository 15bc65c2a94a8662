"""Images with several labels need only config changes: training, evaluation and every tool handle them."""

import json

import numpy as np
import pytest

from tests.data import odd_images
from tests.training.helpers import lines, tiny_config
from tnt_jax.tools import export, figures, predict, probe, report
from tnt_jax.training import evaluate, loop, setup
from tnt_jax.training.saved_config import saved_config

NAMES = ["ant", "bee", "traffic light"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a tiny TNT for four steps, with balanced class weights and mixup -> (folder, workdir, summary)."""
    root, rng = tmp_path_factory.mktemp("listed"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 11)):
        (root / split).mkdir()
        rows = ["path,labels"]
        for number in range(count):
            (root / split / f"{number}.jpg").write_bytes(odd_images.noise(number))
            rows.append(f"{number}.jpg,{';'.join(np.array(NAMES)[rng.random(3) < 0.4])}")
        (root / split / "labels.csv").write_text("\n".join(rows))
    config = tiny_config(
        data__name="folder", data__directory=str(root), data__eval_split="test", data__repeated_augmentation=2
    )
    config.loss, config.class_weights, config.mixing.mixup_alpha = "sigmoid", "balanced", 0.8
    config.batch_size, config.eval_batch_size, config.steps = 8, 8, 4
    workdir = tmp_path_factory.mktemp("runs") / "several"
    return root, workdir, loop.train(setup.prepare(config, workdir))


def test_the_summary_has_precisions_by_class_and_the_metrics_their_mean(trained):
    _, workdir, summary = trained
    best = summary[summary["best"]]
    assert list(best["average_precision"]) == NAMES and best["count"] == 11
    found = [value for value in best["average_precision"].values() if value is not None]
    assert best["mean_average_precision"] == pytest.approx(np.mean(found))
    last = lines(workdir)[-1]
    assert last["eval_ema/mean_average_precision"] == summary["eval_ema"]["mean_average_precision"]
    assert "eval/subset_accuracy" in last and not any("average_precision/" in name for name in last)


def test_a_checkpoint_evaluates_to_the_same(trained):
    _, workdir, summary = trained
    outcome = evaluate.evaluate(setup.prepare_evaluation(None, workdir))
    assert outcome["eval"] == summary["eval"] and outcome["best"] == summary["best"]
    assert json.loads((workdir / "evaluation.json").read_text()) == outcome


def test_the_suite_refuses_it_for_it_would_measure_the_best_class_alone(trained, tmp_path):
    root, workdir, _ = trained
    config = saved_config(workdir, evaluates=True)
    config.report_card = ("folder:test",)
    with pytest.raises(ValueError, match=r"report_card: folder .*several labels.* without config\.report_card"):
        setup.prepare_evaluation(config, workdir)


def test_every_tool_reads_it_or_says_why_not(trained, tmp_path, capsys):
    root, workdir, summary = trained
    predict.main([f"--source={workdir}", str(root / "test"), "--format=json", "--top=3"])
    predictions = json.loads(capsys.readouterr().out)
    assert len(predictions) == 11
    assert all({guess["class"] for guess in each["predictions"]} == set(NAMES) for each in predictions)
    report.main([f"--workdir={workdir}", "--figures=none"])
    assert "Average precision by class" in (workdir / "report.html").read_text()
    figures.main([f"--workdir={workdir}", "--num-images=3"])
    best = summary[summary["best"]]["mean_average_precision"]
    assert f"Mean average precision: {100 * best:.2f}% (11 images" in capsys.readouterr().out
    export.main([f"--source={workdir}", f"--output={tmp_path / 'program'}"])
    assert "jax.nn.sigmoid(logits)" in (tmp_path / "program/README.md").read_text()
    with pytest.raises(SystemExit):
        probe.main([f"--source={workdir}"])
    assert "has several labels per image" in capsys.readouterr().err


def test_softmax_is_refused_with_the_fix(trained, tmp_path):
    root, *_ = trained
    config = tiny_config(data__name="folder", data__directory=str(root), data__eval_split="test")
    with pytest.raises(ValueError, match=r"several labels per image.*--config\.loss=sigmoid"):
        setup.prepare(config, tmp_path)
