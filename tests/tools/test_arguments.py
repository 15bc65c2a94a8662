"""The programs that take a config, started as a user starts them: keys of the config reach it, mistakes are named."""

import subprocess
import sys

import pytest

PROGRAMS = {
    "benchmark": [],
    "probe": ["--source=weights.safetensors", "--output=probe.json"],
    "tpu_report": ["--topology=v5e:2x2"],
}


def start(program, *arguments):
    """-> exit status, standard output, standard error."""
    command = [sys.executable, "-m", f"tnt_jax.tools.{program}", *PROGRAMS[program], *arguments]
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


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_lists_the_programs_flags(program):
    _, printed, _ = start(program, "--help")
    flags = [argument.partition("=")[0] for argument in PROGRAMS[program]]
    assert all(f"  {flag}:" in printed for flag in ["--config", "--output", *flags]), printed
