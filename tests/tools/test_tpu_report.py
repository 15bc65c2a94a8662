"""The command: its flags and error messages, with a stand-in for the compiler."""

import dataclasses
import json
import os

import pytest

from tests.tools.tpu.test_report import pretend
from tests.training.helpers import tiny_config
from tnt_jax.tools import tpu_report
from tnt_jax.tools.tpu import chips


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Returns a function that runs the command with flags -> (what it compiled: batch per chip, ...; its --output)."""
    compiled = []

    def compile_step(config, num_classes, devices, examples=None):
        compiled.append((config.batch_size // len(devices), num_classes, examples))
        found = pretend(compiled[-1][0], per_image=2**27, fixed=2**30)  # 16 GiB hold 120 images
        return dataclasses.replace(found, text=None)  # no text to estimate the cost of

    monkeypatch.setattr(tpu_report, "compile_step", compile_step)
    monkeypatch.setattr(chips, "devices_of", lambda topology: list(range(4)))
    monkeypatch.setattr(tpu_report.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(tpu_report.metadata, "version", lambda name: "0")
    configs = [tiny_config(data__name="synthetic")]
    monkeypatch.setattr(tpu_report.command_line, "read_config", lambda options: configs[-1])

    def run(*flags, config=None, topology="--topology=v5e:2x2"):
        configs.append(config or configs[-1])
        output = tmp_path / "report.json"
        tpu_report.main(["--config=configs/digits.py", topology, f"--output={output}", *flags])
        return compiled, json.loads(output.read_text())

    return run


def test_flags_reach_the_compiler_and_the_report(program, capsys):
    compiled, report = program("--num-classes=7", "--examples=50x10x12", "--largest_batch", "--batch-unit=8")
    assert compiled[0] == (4, 7, (50, 10, 12)) and {each[1:] for each in compiled} == {(7, (50, 10, 12))}
    assert report["largest_batch"]["batch_per_chip"] == 120
    assert "largest batch per chip, in steps of 8: 120" in capsys.readouterr().out


def test_classes_are_those_of_the_data_set_where_nothing_says_otherwise(program):
    compiled, _ = program()
    assert compiled == [(4, 1000, None)]


def test_libtpu_is_loaded_with_the_tiles_that_main_has_for_scanned_blocks(program, monkeypatch):
    loaded_with = []

    def devices_of(topology):
        loaded_with.append(os.environ["LIBTPU_INIT_ARGS"])
        return list(range(4))

    scanned = tiny_config(data__name="synthetic", model__scan=True, scan_tile_kib=7000)
    monkeypatch.setattr(chips, "devices_of", devices_of)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")
    program(config=scanned)
    assert loaded_with == ["--xla_tpu_scoped_vmem_limit_kib=7000"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--topology", "--topology is missing, such as --topology=v5e:4x8"),
        ("--batch-unit=0", "argument --batch-unit: 0 must be at least 1"),
        ("--examples=50000", "--examples=50000: must be COUNTxHEIGHTxWIDTH"),
        ("--hlo=nowhere/step.txt", "--hlo=nowhere/step.txt: there is no folder nowhere"),
        ("--output=nowhere/report.json", "--output=nowhere/report.json: there is no folder nowhere"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_compiled(program, flag, message, capsys):
    with pytest.raises(SystemExit) as stop:
        program("--verbosity=-1", topology="--verbosity=-1") if flag == "--topology" else program(flag)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and "compiling" not in printed
