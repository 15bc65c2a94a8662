"""--mode=evaluate of a run: the numbers of training, and one message if it fails."""

import dataclasses
import json
import shutil

import pytest

from tests.training.helpers import (
    TinyModel,
    TinyPipeline,
    tiny_config,
)
from tests.training.runs import INTERVALS, tiny_parameters
from tnt_jax.training import evaluate, setup
from tnt_jax.training.runtime import RunError

pytestmark = pytest.mark.usefixtures("stand_in")


def test_evaluating_a_damaged_checkpoint_stops_with_a_message(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / "20" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])
    run = setup.prepare_evaluation(None, tmp_path / "run", TinyPipeline(tiny_config(**INTERVALS)))
    with pytest.raises(RunError, match=r"checkpoints/20 is damaged: .* The one before it is .*checkpoints/16\.$"):
        evaluate.evaluate(dataclasses.replace(run, model=TinyModel()))


def test_memory_that_does_not_suffice_in_evaluation_is_said(finished, monkeypatch):
    monkeypatch.setattr(evaluate, "fit", tiny_parameters)

    class LargePipeline(TinyPipeline):
        def evaluation(self):
            raise MemoryError("Out of memory allocating 99 bytes")
            yield

    run = setup.prepare_evaluation(None, finished[0], LargePipeline(tiny_config(**INTERVALS)))
    with pytest.raises(RunError, match=r"Out of memory allocating 99 bytes.*config\.eval_batch_size"):
        evaluate.evaluate(dataclasses.replace(run, model=TinyModel()))


def test_evaluating_a_workdir_gives_what_training_saw(finished, capsys, monkeypatch):
    workdir, summary = finished
    monkeypatch.setattr(evaluate, "fit", tiny_parameters)
    run = setup.prepare_evaluation(None, workdir, TinyPipeline(tiny_config(**INTERVALS)))
    outcome = evaluate.evaluate(dataclasses.replace(run, model=TinyModel()))
    assert outcome["eval"] == summary["eval"] and outcome["eval_ema"] == summary["eval_ema"] and outcome["step"] == 20
    assert json.loads((workdir / "evaluation.json").read_text()) == outcome and outcome["best"] == summary["best"]
    assert "35 images" in capsys.readouterr().out


def test_evaluating_a_model_that_is_not_the_checkpoints_ends_the_run_with_the_difference(finished):
    """Here config.json describes a TNT, and the checkpoint has TinyModel's parameters."""
    run = setup.prepare_evaluation(None, finished[0], TinyPipeline(tiny_config(**INTERVALS)))
    with pytest.raises(
        RunError, match=r"(?s)raw weights of step 20 does not fit.*unused .*config\.json .* was it edited"
    ):
        evaluate.evaluate(run)
