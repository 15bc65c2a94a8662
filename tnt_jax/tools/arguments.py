"""Flags of the programs that take a config: one message for what is not understood; dashes like underscores.

--config.KEY=VALUE without --config changes the configuration of the run that the command line names.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from tnt_jax.names import printable_text
from tnt_jax.workdir import CONFIG_FILE

CANNOT_WORK = 2
# How config_flags reports a key or group that is not there, or (ValueError) that cannot be, such as batch-size.
_UNKNOWN_KEY = (AttributeError, KeyError, TypeError, ValueError)


# What a program reads of a run's configuration beside the model, which is its weights'.
USED_KEYS = ("data.", "eval_batch_size")


def run(
    main: Callable[[Sequence[str]], Any],
    program: str,
    own: flags.FlagValues | None = None,
    config: str | None = None,
    run_flag: str | None = None,
) -> None:
    """Parses the process's flags, and those that a program keeps for itself, and calls main, as absl's app.run does.

    config: the file that is taken where the command line names none; run_flag: see `parse`.
    """
    parser = functools.partial(parse, program=program, own=own, config=config, run_flag=run_flag)
    app.run(main, flags_parser=parser)


def parse(
    arguments: Sequence[str],
    program: str,
    own: flags.FlagValues | None = None,
    config: str | None = None,
    run_flag: str | None = None,
) -> list[str]:
    """The command line -> the program's name; the flags are set. Ends the process with code 2 and one message.

    run_flag: the flag that names a run, whose own configuration is the config where the command line names none.
    """
    from tnt_jax.training.config import KEYS, unknown_key_message

    values = flags.FLAGS if own is None else join(own)
    arguments = [arguments[0], *map(with_underscores, arguments[1:])]
    pairs = [argument.lstrip("-").partition("=") for argument in arguments[1:]]
    # --NAME=VALUE or --NAME VALUE
    given = {
        name: value if sign else after for (name, sign, value), after in zip(pairs, [*arguments[2:], ""], strict=False)
    }
    keys = [name.partition("config.")[2] for name, _, _ in pairs if name.startswith(("config.", "noconfig."))]
    if "config" in given:
        path = given["config"].partition(":")[0]
        if not os.path.isfile(path):
            stop(f"--config={path}: there is no such file. Those of the project are in configs/.", program)
    elif saved := saved_flag(given, run_flag):
        unused = unused_keys([key for key in keys if key in KEYS])
        if unused and program != "main.py":
            stop(unused, program)
        arguments.insert(1, f"--config={saved}")
    elif config is not None:
        arguments.insert(1, f"--config={config}")
    elif keys:
        run_too = f", or the run whose it is by --{run_flag}" if run_flag else ""
        stop(
            f"--config.{keys[0]} changes a key of a config: name its file too, such as --config=configs/NAME.py"
            f"{run_too}.",
            program,
        )
    try:
        rest = values(arguments)[1:]
    except _UNKNOWN_KEY as error:
        unknown = [unknown_key_message(key) for key in keys if key not in KEYS]
        stop("\n".join(unknown) or f"{type(error).__name__} in the config: {error}", program)
    except flags.Error as error:
        stop(_in_short(error), program)
    flags.FLAGS.mark_as_parsed()
    if rest:
        mend = f"--{rest[0].lstrip('-')}" if "=" in rest[0] else "--NAME=VALUE"
        stop(f"{' '.join(rest)}: not understood. Everything is given as a flag, such as {mend}.", program)
    return arguments[:1]


def saved_flag(given: dict[str, str], run_flag: str | None) -> str | None:
    """The flags -> what --config is for the run that they name; None where they name none."""
    from tnt_jax.pretrained.workdir import is_folder, split_step
    from tnt_jax.training import saved_config

    if not given.get(run_flag):
        return None
    if not is_folder(given[run_flag]):
        return None
    workdir, _ = split_step(given[run_flag])
    if not (workdir / CONFIG_FILE).is_file():
        return None
    evaluates = run_flag != "workdir" or given.get("mode") == "evaluate"
    return f"{saved_config.__file__}:{saved_config.EVALUATE * evaluates}{workdir}"


def _in_short(error: flags.Error) -> str:
    """An error of a config's own get_config comes with its traceback as the message: its first and last words."""
    lines = str(error).splitlines()
    if len(lines) == 1 or "Traceback" not in str(error):
        return lines[0]
    said = lines[-1].removeprefix("ValueError: ")
    return said if "saved_config.py:" in lines[0] else f"{lines[0].partition(': Error')[0]}: {said}"


def parse_known(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of a program that takes runs -> its options; `changes` is the list of --config.KEY=VALUE.

    argparse ends the process with code 2 where anything else cannot be understood.
    """
    options, rest = parser.parse_known_args(arguments)
    options.changes = [argument for argument in rest if argument.startswith(("--config.", "--noconfig."))]
    if others := [argument for argument in rest if argument not in options.changes]:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return options


def run_config(workdir: Path, changes: Sequence[str] = ()) -> ConfigDict:
    """A run's folder and --config.KEY=VALUE flags -> its configuration, changed. Raises ValueError with the fix."""
    from tnt_jax.training import saved_config
    from tnt_jax.training.config import KEYS, unknown_key_message

    if not changes:
        return saved_config.saved_config(workdir, evaluates=True)
    keys = [change.partition("=")[0].partition("config.")[2] for change in changes]
    if unknown := [unknown_key_message(key) for key in keys if key not in KEYS]:
        raise ValueError("\n".join(unknown))
    if unused := unused_keys(keys):
        raise ValueError(unused)
    command = ["", f"--config={saved_config.__file__}:{saved_config.EVALUATE}{workdir}", *changes]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command)
    try:
        rest = values(command)[1:]
    except flags.Error as error:
        raise ValueError(_in_short(error)) from error
    if rest:
        raise ValueError(f"{' '.join(rest)}: not understood. Keys are given as --config.KEY=VALUE.")
    return values["config"].value


def unused_keys(keys: Sequence[str]) -> str:
    """Keys of a run's configuration -> what to say of those that a program does not read; "" for none."""
    unused = [f"config.{key}" for key in keys if not key.startswith(USED_KEYS)]
    if not unused:
        return ""
    return (
        f"{', '.join(unused)}: of a run's configuration this program reads data.* and eval_batch_size alone; the rest "
        "is the run's own."
    )


def join(own: flags.FlagValues) -> flags.FlagValues:
    """A program's own flags, the process's added to them -> the same, for the parser.

    A config's flag makes those of its keys while it is parsed, where it lies itself, so the whole command line is read
    by `own`. The process's flags learn the program's for --help alone.
    """
    names = list(own)
    own.append_flag_values(flags.FLAGS)
    for name in names:
        flags.FLAGS[name] = own[name]
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], own[name])
    return own


def with_underscores(argument: str) -> str:
    """--batch-sizes=8 -> --batch_sizes=8; keys of the config, and what is no flag, stay as they are."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or name.startswith("--config."):
        return argument
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def say(text: str) -> None:
    """A result on standard output, whatever the names in it."""
    print(printable_text(text), flush=True)


def stop(message: object, program: str) -> NoReturn:
    """Ends the process with a message instead of a traceback."""
    print(f"{program}: {printable_text(message)}", file=sys.stderr)
    sys.exit(CANNOT_WORK)
