"""Trains or evaluates a model: python main.py --config=configs/NAME.py --workdir=DIR [--config.KEY=VALUE ...].

Without --config, the configuration of the run in the workdir is used, and --config.KEY=VALUE changes it.

Exit codes: 0 done; 2 the command cannot work (one message has cause, place and fix; nothing was written); 3 the run had
to stop (a value that is not finite, a full disk, unreadable data or checkpoints, or a lost process, for which jax may
exit with 134 instead); 4 SIGTERM (preemption) and 130 SIGINT (Ctrl-C), after training has saved the current step. After
3 (once fixed), 4 and 130 the same command resumes. A second Ctrl-C exits at once. --verbosity=1 adds a traceback.
"""

import faulthandler
import os
import sys
from argparse import Namespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow starts
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it logs that it is on, though nothing here uses it

from absl import logging

from tnt_jax.names import printable_text
from tnt_jax.tools import command_line
from tnt_jax.training import runtime
from tnt_jax.training.config import check_config


def parse() -> Namespace:
    """Parses the command line."""
    parser = command_line.Parser("main.py", __doc__)
    parser.add_config()
    parser.add_argument("--workdir", default="", help="folder for checkpoints and metrics; a run in it is resumed")
    parser.add_argument("--mode", choices=("train", "evaluate"), default="train", help="train also evaluates")
    return parser.parse()


def main() -> None:
    """Checks everything, then runs the loop, which handles signals itself while it trains."""
    runtime.exit_on_signals()
    options = parse()
    evaluates = options.mode == "evaluate"
    try:
        config = command_line.read_config(options, options.workdir, evaluates=evaluates, keys=("",))
        if config is None and not evaluates:
            raise ValueError(
                "--config is missing: name a file, such as --config=configs/digits.py, or a run with --workdir."
            )
        config = None if config is None else check_config(config)
        from tnt_jax.training import evaluate, loop, setup  # slow, so after the flags are parsed

        if config is not None:
            runtime.set_up(config)
            if evaluates:
                runtime.exit_on_signals()  # again: jax's preemption service took SIGTERM, for training
        prepare = setup.prepare_evaluation if evaluates else setup.prepare
        run = prepare(config, options.workdir)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        stop(error, command_line.CANNOT_WORK)
    try:
        evaluate.evaluate(run) if evaluates else loop.train(run)
    except runtime.RunError as error:
        stop(error, error.code)


def stop(error: object, code: int) -> None:
    """Ends the process with a message instead of a traceback."""
    logging.debug("Where it happened:", exc_info=True)
    print(f"main.py: {printable_text(error)}", file=sys.stderr)
    sys.exit(code) if code in runtime.SIGNAL_CODES.values() else runtime.leave(code)  # with the others, or at once


if __name__ == "__main__":
    faulthandler.enable()
    logging.use_absl_handler()
    main()
