"""Command-line tools, each with its own main: python -m tnt_jax.tools.NAME."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow starts
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else TensorFlow logs that it is on; it computes nothing here
