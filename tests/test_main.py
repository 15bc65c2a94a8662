"""The entry point: one clear message for an invalid command, and runs from the command line."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

import main as program
from tnt_jax.training import runtime

ROOT = pathlib.Path(__file__).parents[1]
TINY = [
    "--config.model.image_size=8",
    "--config.model.patch_size=4",
    "--config.model.word_size=2",
    "--config.model.inner_dim=2",
    "--config.model.outer_dim=4",
    "--config.model.inner_num_heads=1",
    "--config.model.outer_num_heads=1",
    "--config.model.depth=1",
    "--config.batch_size=16",
    "--config.eval_batch_size=32",
    "--config.steps=3",
]


def main(*arguments, cwd=ROOT):
    """Runs main.py in a process of its own, on the CPU."""
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=300, check=False)


def test_main_is_under_100_lines():
    assert len((ROOT / "main.py").read_text().splitlines()) < 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.lerning_rate=1"], ["config.lerning_rate", "Did you mean learning_rate?"]),
        (["--config.model.depht=1"], ["config.model.depht", "Did you mean model.depth?"]),
        (["--config.modle.image_size=32"], ["config.modle.image_size", "Did you mean model.image_size?"]),
        (["--config.data.name.x=1"], ["config.data.name.x", "Did you mean data.name?"]),
        (["config.epochs=3"], ["config.epochs=3", "--config.epochs=3"]),
        (["--config", "configs/nothing.py"], ["configs/nothing.py", "no such file"]),
        (["--config.epochs=many"], ["config.epochs=many"]),
        (["--config.model.image_size=25"], ["image_size=25", "patch_size=4", "24"]),
        (["--config.data.randaugment=rand-x9"], ["data.randaugment='rand-x9'", "rand-m9-mstd0.5-inc1"]),
        (["--config.batch_size=100", "--config.accumulation_steps=3"], ["accumulation_steps=3", "96 or 120"]),
        (["--config=configs/nothing.py"], ["configs/nothing.py", "no such file"]),
        (["--config=configs/ablations.py:words=7"], ["configs/ablations.py:words=7", "64, 16, 4"]),
        (["--config.pretrained=nothing.safetensors"], ["nothing.safetensors", "no such file"]),
        (["--mode=evaluate"], ["nothing to evaluate", "--config.pretrained"]),
        (["--workdir="], ["--workdir is empty"]),
        (["--workdir=main.py"], ["main.py is a file"]),
        (["--workdri=x"], ["workdri"]),
    ],
)
def test_what_cannot_work_is_one_message_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, words):
    """Runs in this process, which keeps its signal handlers and devices."""
    for name in ("exit_on_signals", "set_up"):
        monkeypatch.setattr(runtime, name, lambda *arguments: None)
    monkeypatch.setattr(runtime, "leave", sys.exit)
    monkeypatch.setattr(
        sys, "argv", ["main.py", f"--workdir={tmp_path / 'run'}", "--config=configs/digits.py", *arguments]
    )
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        program.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    for word in words:
        assert word in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--config.lerning_rate=1"], ["--config.model.image_size=25"]])
def test_a_process_that_cannot_work_ends_with_its_code_and_without_a_traceback(tmp_path, arguments):
    """Covers an error found before devices are initialised and one found after."""
    done = main(f"--workdir={tmp_path / 'run'}", "--config=configs/digits.py", *arguments)
    assert done.returncode == 2 and done.stderr.count("main.py: ") == 1, done.stderr
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


def test_a_missing_config_is_said():
    done = main("--workdir=somewhere")
    assert done.returncode == 2 and "--config=configs/digits.py" in done.stderr


def test_training_and_evaluating_from_the_command_line(tmp_path):
    """Runs from outside the project's folder, and writes the documented keys of summary.json."""
    workdir = tmp_path / "run"
    done = main("--config", ROOT / "configs/digits.py", f"--workdir={workdir}", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "on 2 x cpu" in done.stdout  # config.cpu_devices
    assert "step 3/3" in done.stdout and "360 images" in done.stdout
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["eval"]["count"] == summary["eval_ema"]["count"] == 360
    # Without --config a key changes the run's own configuration.
    again = main("--mode=evaluate", f"--workdir={workdir}", "--config.prefetch_batches=1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads((workdir / "evaluation.json").read_text())["eval"] == summary["eval"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 4), (signal.SIGINT, 130)])
def test_a_signal_before_the_first_step_ends_with_its_code_and_a_message(tmp_path, number, code):
    """Sends it while the data package is imported, which takes seconds and would turn an exception into another."""
    script = """
import sys
sys.addaudithook(lambda name, args: name == "import" and args[0] == "tensorflow_datasets" and print("now", flush=True))
import main
main.main()
"""
    flags = ["--config=configs/default.py", "--config.data.name=synthetic", f"--workdir={tmp_path / 'run'}"]
    command = [sys.executable, "-c", script, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "now\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    assert f"main.py: {number.name}: ended with nothing new to save" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()
