"""Programs that take a config, started as a user starts them: config keys reach it, and mistakes are named."""

import subprocess
import sys

import pytest

from tnt_jax.tools import command_line, complexity, export, figures, prepare

PROGRAMS = {
    "speed": [],
    "probe": ["--source=weights.safetensors", "--output=probe.json"],
    "tpu_report": ["--topology=v5e:2x2"],
}


def start(program, *arguments):
    """Runs a program -> (exit status, standard output, standard error)."""
    package = "benchmarks" if program == "speed" else "tnt_jax.tools"
    command = [sys.executable, "-m", f"{package}.{program}", *PROGRAMS[program], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_key_of_the_config_reaches_the_config(program):
    """The check of values, which runs after the parser, sees the key's new value."""
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
    assert code == 2 and printed.startswith("probe: --config.data.train_split=train[:10%] changes a key of a config.")


def test_without_a_config_the_benchmark_takes_its_own():
    code, _, printed = start("speed", "--config.model.dpth=2")
    assert code == 2 and printed == "speed: config.model.dpth: there is no such key. Did you mean model.depth?\n"
    code, _, printed = start("speed", "--config.model.depth=-2", "--baseline=none")
    assert code == 2 and printed.startswith("speed: config.model.depth=-2"), printed


def test_a_baseline_that_is_not_there_is_named():
    code, _, printed = start("speed", "--baseline-python=nowhere/python")
    assert code == 2 and printed.startswith("speed: --baseline-python=nowhere/python: there is no such program."), (
        printed
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_lists_the_programs_flags(program):
    code, printed, _ = start(program, "--help")
    flags = [argument.partition("=")[0] for argument in PROGRAMS[program]]
    assert code == 0 and all(f"  {flag}" in printed for flag in ["--config", "--output", *flags]), printed


@pytest.fixture
def parser():
    parser = command_line.Parser("test", "What it does.")
    parser.add_config()
    parser.add_argument("images", nargs="*")
    parser.add_argument("--batch-size", type=int)
    return parser


def test_dashes_and_underscores_are_the_same_but_in_a_key_and_its_value(parser):
    options = parser.parse(["--batch_size=8", "a_b.png", "--config.data.name=a b", "--noconfig.model.scan"])
    assert options.batch_size == 8 and options.images == ["a_b.png"]
    assert options.changes == ["--config.data.name=a b", "--noconfig.model.scan"]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--batch-sise=8", "Did you mean --batch-size?"),
        ("--nothing", "--help lists the flags."),
        ("--batch-size=many", "invalid int value: 'many'"),
    ],
)
def test_what_is_not_understood_is_one_line_with_a_hint(parser, word, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse([word])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("test: ") and said.endswith(f"{hint}\n") and said.count("\n") == 1


def test_a_flag_without_dashes_is_given_with_them(capsys):
    for word, hint in (("config.seed=3", "--config.seed=3"), ("seed", "--NAME=VALUE")):
        with pytest.raises(SystemExit):
            command_line.Parser("test", "").parse([word])
        assert f"{word}: not understood. Give flags as {hint}; --help lists them." in capsys.readouterr().err


def test_errors_of_a_configs_own_function_are_said_in_short(parser):
    with pytest.raises(ValueError, match=r"(?s)words=7.*64, 16, 4") as error:
        command_line.read_config(parser.parse(["--config=configs/ablations.py:words=7"]))
    assert "Traceback" not in str(error.value)
    with pytest.raises(ValueError, match="config.epochs=many"):
        command_line.read_config(parser.parse(["--config=configs/digits.py", "--config.epochs=many"]))
    with pytest.raises(ValueError, match="there is no such file. Those of the project are in configs/."):
        command_line.read_config(parser.parse(["--config=configs/nothing.py"]))


def test_changes_of_all_kinds_reach_the_config(parser):
    flags = ["--config.model.scan", "--noconfig.model.remat", "--config.data.mean=(0.1,0.2,0.3)", "--config.seed=3"]
    config = command_line.read_config(parser.parse(["--config=configs/digits.py", *flags]))
    assert config.model.scan is True and config.model.remat is False and config.seed == 3
    assert config.data.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(("program", "arguments"), [(prepare, ["digits"]), (complexity, [])])
def test_a_key_is_refused_where_no_configuration_is_read(program, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main([*arguments, "--config.data.no_such_key=1"])
    assert ended.value.code == 2 and "this program reads no configuration" in capsys.readouterr().err


def test_a_key_of_figures_needs_a_run():
    with pytest.raises(ValueError, match=r"--config\.data\.mean.*none of --models is a run"):
        figures.open_subjects("tnt_ti_patch16_224:random", changes=["--config.data.mean=(0.5,)"])


def test_a_path_has_its_home_expanded(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--source=x", "--output=~/weights.safetensors", "--format=safetensors"]
    assert export.parse(words).output == tmp_path / "weights.safetensors"
    with pytest.raises(SystemExit):
        export.parse(["--source=x", "--output=~no_such_user/x"])
    assert "--output" in (said := capsys.readouterr().err) and "there is no user of that name" in said
