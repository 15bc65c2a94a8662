"""Small programs with a main of their own: python -m tnt_jax.tools.NAME."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow starts
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it says that it is on, and it computes nothing here
