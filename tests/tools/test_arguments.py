"""The programs that take a config, started as a user starts them: keys of the config reach it, mistakes are named."""

import subprocess
import sys

import pytest

PROGRAMS = {
    "speed": [],
    "probe": ["--source=weights.safetensors", "--output=probe.json"],
    "tpu_report": ["--topology=v5e:2x2"],
}


def start(program, *arguments):
    """-> exit status, standard output, standard error."""
    package = "benchmarks" if program == "speed" else "tnt_jax.tools"
    command = [sys.executable, "-m", f"{package}.{program}", *PROGRAMS[program], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_key_of_the_config_reaches_the_config(program):
    """The check of the values, which comes after the parser, sees the key's new value."""
    code, _, printed = start(program, "--config=configs/digits.py", "--config.batch_size=-3")
    assert code == 2 and printed.startswith(f"{program}: config.batch_size=-3"), printed


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_key_is_named(program):
    code, _, printed = start(program, "--config=configs/digits.py", "--config.modle.scan=True")
    assert code == 2 and printed.startswith(f"{program}: config.modle.scan: there is no such key."), printed


def test_a_key_with_a_dash_is_named():
    code, _, printed = start("tpu_report", "--config=configs/digits.py", "--config.batch-size=8")
    assert code == 2 and printed == "tpu_report: config.batch-size: there is no such key. Did you mean batch_size?\n"


def test_a_key_needs_the_config_whose_it_is():
    code, _, printed = start("probe", "--config.data.train_split=train[:10%]")
    assert code == 2 and printed.startswith("probe: --config.data.train_split changes a key of a config: name its file")


def test_without_a_config_the_benchmark_takes_its_own():
    code, _, printed = start("speed", "--config.model.dpth=2")
    assert code == 2 and printed == "speed: config.model.dpth: there is no such key. Did you mean model.depth?\n"
    code, _, printed = start("speed", "--config.model.depth=-2", "--peer=none")
    assert code == 2 and printed.startswith("speed: config.model.depth=-2"), printed


def test_a_peer_that_is_not_there_is_named():
    code, _, printed = start("speed", "--peer-python=nowhere/python")
    assert code == 2 and printed.startswith("speed: --peer-python=nowhere/python: there is no such program."), printed


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_lists_the_programs_flags(program):
    _, printed, _ = start(program, "--help")
    flags = [argument.partition("=")[0] for argument in PROGRAMS[program]]
    assert all(f"  {flag}:" in printed for flag in ["--config", "--output", *flags]), printed
