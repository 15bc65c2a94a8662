"""Trains or evaluates a model: python main.py --config=configs/NAME.py --workdir=DIR [--config.KEY=VALUE ...].

Exit codes: 0 done; 2 the command cannot work (one message says what, where and the mend, and nothing was written);
3 the run had to stop (not a number, a full disk, unreadable data or checkpoints, another process gone: or 134, by jax);
4 SIGTERM (a machine is taken away) and 130 SIGINT (Ctrl-C): training has saved the step under way. After 3 (and its
mend), 4 and 130 the same command goes on. A second Ctrl-C ends at once. --verbosity=1 adds where in the code it was.
"""

import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow starts

from absl import app, flags, logging
from ml_collections import config_flags

from tnt_jax.training import devices, preemption
from tnt_jax.training.config import accepted_keys, check_config, unknown_key_message

CANNOT_WORK, STOPPED, TERMINATED, INTERRUPTED = 2, 3, 4, 130

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "One of configs/*.py. Every key can be changed: --config.KEY=VALUE.")
flags.DEFINE_string("workdir", "", "Folder of the run: checkpoints, metrics, summary. An old one is continued.")
flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "Train (and evaluate), or evaluate a workdir or weights.")


def main(_: list[str]) -> None:
    """Checks everything first, then calls the loop, which takes the signals over while it trains."""
    ends = {signal.SIGTERM: TERMINATED, signal.SIGINT: INTERRUPTED}
    preemption.end_at_once(ends)
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax tells of every file
    try:
        if FLAGS.mode == "train" and FLAGS.config is None:
            raise ValueError("--config is missing: name a file, such as --config=configs/digits.py.")
        from tnt_jax.training import loop, recorded, setup  # seconds that a misspelt flag need not wait for

        if FLAGS.config is not None:
            devices.set_up(check_config(FLAGS.config))
            if FLAGS.mode == "evaluate":
                preemption.end_at_once(ends)  # again: jax's preemption service has taken SIGTERM, for training
        elif (saved := recorded.read_run_config(setup.check_workdir(FLAGS.workdir))) is not None:
            devices.set_up(check_config(saved), join=False)  # one process can evaluate what several have trained
        prepare = setup.prepare if FLAGS.mode == "train" else setup.prepare_evaluation
        run = prepare(FLAGS.config, FLAGS.workdir)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        stop(error, CANNOT_WORK)
    try:
        loop.train(run) if FLAGS.mode == "train" else loop.evaluate(run)
    except loop.Stopped as error:  # all processes at the same step
        stop(error, TERMINATED if error.signal == signal.SIGTERM else INTERRUPTED)
    except loop.RunError as error:
        stop(error, STOPPED)


def parse(arguments: list[str]) -> list[str]:
    """The flags; a file, key or value that does not work, and a word that is no flag, is said in one message."""
    pairs = [split(argument) for argument in arguments]
    for (name, equals, value), following in zip(pairs, [*arguments[1:], ""], strict=True):
        path = (value if equals else following).partition(":")[0]  # --config=FILE or --config FILE
        if name == "config" and not os.path.isfile(path):
            stop(f"--config={path}: there is no such file. Those of the project are in configs/.", CANNOT_WORK)
    try:
        rest = FLAGS(arguments)[1:]
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # config_flags: a key or group that is not there
        keys = [name.partition("config.")[2] for name, _, _ in pairs if name.startswith(("config.", "noconfig."))]
        unknown = "\n".join(unknown_key_message(key) for key in keys if key not in accepted_keys())
        stop(unknown or f"{type(error).__name__} in the config: {error}", CANNOT_WORK)
    except flags.Error as error:  # an error of a config's own get_config comes with its traceback as the message
        lines = str(error).splitlines()
        stop(lines[0] if len(lines) == 1 else f"{lines[0].partition(': Error')[0]}: {lines[-1]}", CANNOT_WORK)
    if rest:
        mend = f"--{rest[0].lstrip('-')}" if "=" in rest[0] else "--NAME=VALUE"
        stop(f"{' '.join(rest)}: not understood. Everything is given as a flag, such as {mend}.", CANNOT_WORK)
    return arguments[:1]


def split(argument: str) -> tuple[str, str, str]:
    """--NAME=VALUE -> (NAME, "=", VALUE)."""
    return argument.lstrip("-").partition("=")


def stop(error: object, code: int) -> None:
    """Ends the process with a message instead of a traceback."""
    logging.debug("Where it happened:", exc_info=True)
    print(f"main.py: {error}", file=sys.stderr)
    sys.exit(code) if code in (TERMINATED, INTERRUPTED) else devices.leave(code)  # several end together, or at once


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
