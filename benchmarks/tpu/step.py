"""The training step of a config on a slice of TPUs, priced by libtpu's bundles: part by part, nothing runs.

    python -m benchmarks.tpu.step --config=configs/imagenet_tnt_s.py --topology=v5e:2x2 [--config.KEY=VALUE ...]

What tnt_jax.tools.tpu_report does with XLA's estimates, with the price of benchmarks/tpu/cost.py: for work on kernels,
of which XLA knows the memory traffic alone. A step dumps hundreds of megabytes into the temporary folder, gone at the
end, and takes minutes. Needs libtpu (the extra tpu-report).
"""

import os
from collections.abc import Sequence

os.environ["JAX_PLATFORMS"] = "cpu"  # libtpu compiles here, and has no TPU to compute on

from absl import app, flags
from ml_collections import config_flags

from benchmarks.tpu.cost import bundle_folder, by_bundles
from tnt_jax.tools.tpu import chips
from tnt_jax.tools.tpu.prices import price
from tnt_jax.tools.tpu.step import compile_step
from tnt_jax.training.config import check_config
from tnt_jax.training.runtime import limit_tiles

CONFIG = config_flags.DEFINE_config_file("config", None, "One of configs/*.py.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "The slice.")
NUM_CLASSES = flags.DEFINE_integer("num_classes", 1000, "Of the head.")


def main(_: Sequence[str]) -> None:
    """Prints million cycles of a chip, the whole step's and each part's."""
    config = check_config(CONFIG.value)
    limit_tiles(config)
    folder = bundle_folder()
    devices, chip = chips.devices_of(TOPOLOGY.value), chips.chip_of(TOPOLOGY.value)
    step = compile_step(config, NUM_CLASSES.value, devices, None)
    if step.text is None:
        raise app.UsageError(f"the step does not compile for {TOPOLOGY.value}: {step.refusal}")
    prices = by_bundles(price(step.text, chip, len(devices)), folder)
    span = f"{prices.cycles / 1e6:.1f}..{prices.cycles_serial / 1e6:.1f}"
    print(f"{span} M cycles, compiled in {step.compile_seconds:.0f} s")
    for part, cycles in sorted(prices.by_part().items(), key=lambda item: -item[1]):
        print(f"{part:20s} {cycles / 1e6:8.2f}")


if __name__ == "__main__":
    app.run(main)
