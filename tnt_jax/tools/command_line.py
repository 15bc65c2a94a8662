"""Command lines: argparse for a program's flags, ml_collections for --config.KEY=VALUE, one message for an error.

Dashes and underscores in flag names are the same. A command that cannot work prints one message on standard error and
exits with code 2.
"""

import argparse
import contextlib
import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from tnt_jax.names import printable_text
from tnt_jax.workdir import CONFIG_FILE, user_path

CANNOT_WORK = 2
CHANGE = ("--config.", "--noconfig.")  # a key of the config, and a boolean key set to False
# Keys of a run's config that a tool may change. The model's settings belong to its weights.
RUN_KEYS = ("data.", "eval_batch_size")


class Parser(argparse.ArgumentParser):
    """Flags of one program. `parse` returns its options, with the --config.KEY=VALUE flags as `changes`."""

    reads_config = False  # whether there is a config, of a file or a run, for --config.KEY=VALUE to change

    def __init__(self, program: str, description: str) -> None:
        super().__init__(
            program,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        levels = "log level: -1 warnings (default), 0 information, 1 debugging"
        self.add_argument("--verbosity", type=int, default=logging.WARNING, metavar="LEVEL", help=levels)

    def add_config(self, default: str | None = None) -> None:
        """Adds --config=FILE."""
        self.reads_config = True
        words = "a config, one of configs/*.py; --config.KEY=VALUE changes one of its keys"
        self.add_argument("--config", default=default, metavar="FILE[:ARGUMENT]", help=words)

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Command-line arguments (None: sys.argv) -> options. Sets the log level."""
        words = sys.argv[1:] if arguments is None else list(arguments)
        changes = [word for word in words if word.startswith(CHANGE)]
        own = [_with_dashes(word) for word in words if not word.startswith(CHANGE)]
        options, rest = self.parse_known_args(own)
        if rest:
            self.error(f"{' '.join(rest)}: not understood. {self._hint(rest[0])}")
        if changes and not self.reads_config:
            self.error(f"{changes[0]}: this program reads no configuration. Leave it out.")
        options.changes = changes
        logging.set_verbosity(options.verbosity)
        flags.FLAGS.mark_as_parsed()  # Grain and tfds define absl flags too
        return options

    def error(self, message: str) -> NoReturn:
        """Exits with one message, without argparse's usage text."""
        stop(message, self.prog)

    def _hint(self, word: str) -> str:
        if not word.startswith("-"):
            return f"Give flags as {f'--{word}' if '=' in word else '--NAME=VALUE'}; --help lists them."
        near = difflib.get_close_matches(_with_dashes(word).partition("=")[0], self._option_string_actions, 1)
        return f"Did you mean {near[0]}?" if near else "--help lists the flags."


def read_config(options: argparse.Namespace, run: str = "", **settings: bool | tuple[str, ...]) -> ConfigDict | None:
    """Returns the config of --config, or else of `run`, with the changes applied; None if there is neither.

    run: a workdir, or a checkpoint in it. settings: options of run_config. Raises ValueError with the fix.
    """
    from tnt_jax.pretrained.workdir import is_folder, split_step

    if options.config is not None:
        path = options.config.partition(":")[0]
        if not Path(path).is_file():
            raise ValueError(f"--config={path}: there is no such file. Those of the project are in configs/.")
        return _changed([f"--config={options.config}", *options.changes], config_flags.DEFINE_config_file, None)
    if run and is_folder(run) and (split_step(run)[0] / CONFIG_FILE).is_file():
        return run_config(split_step(run)[0], options.changes, **settings)
    if options.changes:
        raise ValueError(
            f"{options.changes[0]} changes a key of a config. Name its file too, such as --config=configs/NAME.py, or "
            "a run, whose config it then changes."
        )
    return None


def run_config(
    workdir: Path, changes: Sequence[str] = (), *, evaluates: bool = True, keys: tuple[str, ...] = RUN_KEYS
) -> ConfigDict:
    """A run's workdir and --config.KEY=VALUE flags -> its config, changed. Raises ValueError with the fix.

    evaluates: as in training.saved_config.saved_config. keys: prefixes of the keys that may change.
    """
    from tnt_jax.training.config import KEYS
    from tnt_jax.training.saved_config import saved_config

    known = [key for key in _keys(changes) if key in KEYS]
    if unused := [f"config.{key}" for key in known if not key.startswith(keys)]:
        raise ValueError(
            f"{', '.join(unused)}: of a run's configuration this program reads only data.* and eval_batch_size; the "
            "rest belongs to the run."
        )
    return _changed(changes, config_flags.DEFINE_config_dict, saved_config(workdir, evaluates))


def _changed(arguments: Sequence[str], define: Callable[..., object], config: ConfigDict | None) -> ConfigDict:
    """Defines --config with `define` and the default `config`, parses the arguments and returns its value."""
    from tnt_jax.training.config import KEYS, unknown_key_message

    command, values = ["", *arguments], flags.FlagValues()
    try:
        define("config", config, flag_values=values, sys_argv=command)
        values(command)
        return values["config"].value
    # config_flags raises these for an unknown key, an impossible one (batch-size) and a value of the wrong type.
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        keys = [key.partition("[")[0] for key in _keys(arguments)]
        if unknown := [unknown_key_message(key) for key in keys if key not in KEYS]:
            raise ValueError("\n".join(unknown)) from error
        if isinstance(error, flags.Error):
            raise ValueError(_in_short(error)) from error
        raise ValueError(f"{type(error).__name__} in the config: {error}") from error


def _keys(arguments: Sequence[str]) -> list[str]:
    """--config.KEY=VALUE -> KEY."""
    return [word.partition("=")[0].partition("config.")[2] for word in arguments if word.startswith(CHANGE)]


def _in_short(error: flags.Error) -> str:
    """Cuts an error of a config's own get_config, whose message is a traceback, to its first and last line."""
    lines = str(error).splitlines()
    if len(lines) == 1 or "Traceback" not in str(error):
        return lines[0]
    return f"{lines[0].partition(': Error')[0]}: {lines[-1].removeprefix('ValueError: ')}"


def at_least(least: int, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    """Returns a type for add_argument: numbers of at least `least`."""

    def number(text: str) -> float:
        if (value := kind(text)) < least:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least}")
        return value

    number.__name__ = kind.__name__  # argparse names it in its message about an invalid number
    return number


def path(text: str) -> Path:
    """A type for add_argument: a path with ~ expanded, which a shell leaves as it is in --output=~/file."""
    try:
        return user_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def image_size(text: str) -> int | tuple[int, int]:
    """A type for add_argument: "384" (a side) or "384x512" (height and width), in pixels."""
    sides = tuple(int(side) for side in text.split("x"))
    if len(sides) > 2 or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an image size; give a side or HEIGHTxWIDTH")
    return sides if len(sides) == 2 else sides[0]


def _with_dashes(word: str) -> str:
    """--batch_size=8 -> --batch-size=8; other words stay as they are."""
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('_', '-')}{equals}{value}" if name.startswith("--") else word


@contextlib.contextmanager
def one_message(program: str, *errors: type[Exception]) -> Iterator[None]:
    """Context in which ValueError, OSError and `errors` end the process with their message (see `stop`)."""
    try:
        yield
    except (ValueError, OSError, *errors) as error:
        stop(error, program)


def log(text: str) -> None:
    """Prints a result on standard output, with control characters in names escaped."""
    print(printable_text(text), flush=True)


def stop(message: object, program: str) -> NoReturn:
    """Exits with code 2 and a message instead of a traceback."""
    print(f"{program}: {printable_text(message)}", file=sys.stderr)
    sys.exit(CANNOT_WORK)
