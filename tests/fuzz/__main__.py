"""Many random configs: python -m tests.fuzz --examples=60 --seed=0

Checks twenty configs per example without training, which takes no time; `--examples` accepted configs train a step,
evaluate and save. Prints each that trains, and at the end how many were refused, trained, or not finite. Stops at the
first config that neither trains nor is refused by the program's own message, and shows what was changed.
"""

import argparse
import os
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main() -> None:
    """Checks both properties of properties.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=60, help="number of configs that train a step")
    parser.add_argument("--seed", type=int, default=0, help="seed of the values")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as compiled:  # many keys do not change the compiled program
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": compiled, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
        run(arguments, started)


def run(arguments: argparse.Namespace, started: float) -> None:
    """Runs all checks and prints their counts; seconds count from `started`."""
    from tests.fuzz import harness, properties, saved  # takes seconds, and imports jax

    with harness.place() as folder:
        (folder / "saved").mkdir()
        for name, check in {"workdir names": saved.check_names, "config.json": saved.check_configs}.items():
            print(f"{name}: {_in_words(check(folder / 'saved', 20 * arguments.examples, arguments.seed))}", flush=True)
        checked = properties.check_refusals(20 * arguments.examples, arguments.seed)
        print(f"alone: {_in_words(checked)}. {time.monotonic() - started:.0f} s", flush=True)
        trained = properties.check_training(arguments.examples, arguments.seed, verbose=True)
    print(f"with a step: {_in_words(trained)}. {time.monotonic() - started:.0f} s in all")


def _in_words(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.items()))


if __name__ == "__main__":
    main()
