"""Flags of the programs that take a config: one message for what is not understood; dashes like underscores."""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags

CANNOT_WORK = 2
# How config_flags reports a key or group that is not there, or (ValueError) that cannot be, such as batch-size.
_UNKNOWN_KEY = (AttributeError, KeyError, TypeError, ValueError)


def run(
    main: Callable[[Sequence[str]], Any],
    program: str,
    own: flags.FlagValues | None = None,
    config: str | None = None,
) -> None:
    """Parses the process's flags, and those that a program keeps for itself, and calls main, as absl's app.run does.

    config: the file that is taken where the command line names none.
    """
    app.run(main, flags_parser=functools.partial(parse, program=program, own=own, config=config))


def parse(
    arguments: Sequence[str], program: str, own: flags.FlagValues | None = None, config: str | None = None
) -> list[str]:
    """The command line -> the program's name; the flags are set. Ends the process with code 2 and one message."""
    from tnt_jax.training.config import accepted_keys, unknown_key_message

    values = flags.FLAGS if own is None else join(own)
    arguments = [arguments[0], *map(with_underscores, arguments[1:])]
    pairs = [argument.lstrip("-").partition("=")[::2] for argument in arguments[1:]]
    named = any(name == "config" for name, _ in pairs)
    if config is not None and not named:
        arguments.insert(1, f"--config={config}")
    for name, value in pairs:
        if name == "config" and value and not os.path.isfile(value.partition(":")[0]):
            stop(f"--config={value}: there is no such file. Those of the project are in configs/.", program)
    keys = [name.partition("config.")[2] for name, _ in pairs if name.startswith(("config.", "noconfig."))]
    if keys and config is None and not named:
        stop(
            f"--config.{keys[0]} changes a key of a config: name its file too, such as --config=configs/NAME.py.",
            program,
        )
    try:
        rest = values(arguments)[1:]
    except _UNKNOWN_KEY as error:
        unknown = [unknown_key_message(key) for key in keys if key not in accepted_keys()]
        stop("\n".join(unknown) or f"{type(error).__name__} in the config: {error}", program)
    except flags.Error as error:
        stop(str(error).splitlines()[0], program)
    flags.FLAGS.mark_as_parsed()
    if rest:
        stop(f"{' '.join(rest)}: not understood. Everything is given as --NAME=VALUE.", program)
    return arguments[:1]


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


def stop(message: object, program: str) -> NoReturn:
    """Ends the process with a message instead of a traceback."""
    print(f"{program}: {message}", file=sys.stderr)
    sys.exit(CANNOT_WORK)
