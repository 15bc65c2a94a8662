"""Small programs with a main of their own: python -m tnt_jax.tools.NAME."""

import os

from absl import flags, logging

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow starts


def be_quiet() -> None:
    """Warnings alone, unless --verbosity is given: orbax tells of every file."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
