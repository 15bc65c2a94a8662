"""Estimates a config's training step on a TPU slice by libtpu's bundles, part by part; nothing runs.

    python -m benchmarks.tpu.step --config=configs/imagenet_tnt_s.py --topology=v5e:2x2 [--config.KEY=VALUE ...]

Like tnt_jax.tools.tpu_report, with benchmarks/tpu/cost.py in place of XLA's estimates: for work on kernels, of which
XLA only knows the memory traffic. A step takes minutes and dumps hundreds of megabytes into the temporary folder, which
are removed at the end. Needs libtpu (the extra tpu-report).
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # libtpu only compiles here; there is no TPU to run on

from benchmarks.tpu.cost import bundle_folder, by_bundles
from tnt_jax.tools import command_line
from tnt_jax.tools.tpu import chips
from tnt_jax.tools.tpu.step import compile_step
from tnt_jax.training.config import check_config
from tnt_jax.training.runtime import limit_tiles


def main() -> None:
    """Prints the million cycles of a chip for the whole step and for each part."""
    parser = command_line.Parser("step", __doc__)
    parser.add_config()
    parser.add_argument("--topology", default="v5e:2x2", help="the slice (default v5e:2x2)")
    parser.add_argument("--num-classes", type=int, default=1000, help="of the head (default 1000)")
    options = parser.parse()
    with command_line.one_message("step", ImportError):
        config = command_line.read_config(options)
        if config is None:
            raise ValueError("--config is missing, such as --config=configs/imagenet_tnt_s.py.")
        config, chip = check_config(config), chips.chip_of(options.topology)
        limit_tiles(config)
        folder = bundle_folder()
        devices = chips.devices_of(options.topology)
        step = compile_step(config, options.num_classes, devices, None)
        if step.text is None:
            raise ValueError(f"the step does not compile for {options.topology}: {step.refusal}")
    found = by_bundles(step.text, chip, folder, len(devices))
    span = f"{found.cycles / 1e6:.1f}..{found.cycles_serial / 1e6:.1f}"
    print(f"{span} M cycles, compiled in {step.compile_seconds:.0f} s")
    for part, cycles in sorted(found.by_part().items(), key=lambda item: -item[1]):
        print(f"{part:20s} {cycles / 1e6:8.2f}")


if __name__ == "__main__":
    main()
