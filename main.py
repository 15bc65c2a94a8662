"""Trains or evaluates a model: python main.py --config=configs/NAME.py --workdir=DIR [--config.KEY=VALUE ...].

Without --config, the configuration of the run in the workdir is taken, and --config.KEY=VALUE changes that.

Exit codes: 0 done; 2 the command cannot work (one message says what, where and the fix, and nothing was written);
3 the run had to stop (not a number, a full disk, unreadable data or checkpoints, another process gone: or 134, by jax);
4 SIGTERM (a machine is taken away) and 130 SIGINT (Ctrl-C): training has saved the step under way. After 3 (and its
fix), 4 and 130 the same command resumes. A second Ctrl-C ends at once. --verbosity=1 adds where in the code it was.
"""

import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow starts

from absl import flags, logging
from ml_collections import config_flags

from tnt_jax.names import printable_text
from tnt_jax.tools import arguments
from tnt_jax.training import runtime
from tnt_jax.training.config import check_config

CANNOT_WORK, TERMINATED, INTERRUPTED = 2, 4, 130

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "One of configs/*.py. Every key can be changed: --config.KEY=VALUE.")
flags.DEFINE_string("workdir", "", "Folder of the run: checkpoints, metrics, summary. An old one is resumed.")
flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "Train (and evaluate), or evaluate a workdir or weights.")


def main(_: list[str]) -> None:
    """Checks everything first, then calls the loop, which takes the signals over while it trains."""
    ends = {signal.SIGTERM: TERMINATED, signal.SIGINT: INTERRUPTED}
    runtime.exit_on_signals(ends)
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax tells of every file
    try:
        if FLAGS.mode == "train" and FLAGS.config is None:
            raise ValueError(
                "--config is missing: name a file, such as --config=configs/digits.py, or by --workdir a run."
            )
        config = None if FLAGS.config is None else check_config(FLAGS.config)
        from tnt_jax.training import evaluate, loop, setup  # seconds that a misspelt flag need not wait for

        if config is not None:
            runtime.set_up(config)
            if FLAGS.mode == "evaluate":
                runtime.exit_on_signals(ends)  # again: jax's preemption service has taken SIGTERM, for training
        prepare = setup.prepare if FLAGS.mode == "train" else setup.prepare_evaluation
        run = prepare(config, FLAGS.workdir)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        stop(error, CANNOT_WORK)
    try:
        loop.train(run) if FLAGS.mode == "train" else evaluate.evaluate(run)
    except runtime.RunError as error:
        stop(error, error.code)


def stop(error: object, code: int) -> None:
    """Ends the process with a message instead of a traceback."""
    logging.debug("Where it happened:", exc_info=True)
    print(f"main.py: {printable_text(error)}", file=sys.stderr)
    sys.exit(code) if code in (TERMINATED, INTERRUPTED) else runtime.leave(code)  # several end together, or at once


if __name__ == "__main__":
    arguments.run(main, "main.py", run_flag="workdir")
