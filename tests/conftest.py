"""Tests run on the CPU with eight virtual devices, whatever the machine has."""

import os

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
flags = [
    "--xla_force_host_platform_device_count=8",
    # Tests compile more than they compute: without optimisation they take half the time.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    # On a busy two-core machine the eight devices may wait long for each other; by default XLA aborts after 40 s.
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=600",
    "--xla_cpu_collective_call_terminate_timeout_seconds=1200",
]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
# Run one computation at a time: devices of concurrent computations could wait for each other's threads.
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    """Compiles each program once for all tests and both workers."""
    import jax

    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
