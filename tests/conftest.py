"""Tests run on the CPU with eight virtual devices, whatever the machine has."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
flags = [
    "--xla_force_host_platform_device_count=8",
    # Tests compile much and compute little: half the optimisation halves their time.
    "--xla_backend_optimization_level=1",
    "--xla_llvm_disable_expensive_passes=true",
]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
