"""Compiles a config's training step for an absent TPU slice: does it fit, what does it cost, where does time go.

    python -m tnt_jax.tools.tpu_report --config=configs/imagenet_tnt_b.py --topology=v5e:4x8 [--config.KEY=VALUE ...]

The step is the training loop's (pmapped, donated, AdamW, moving average, mixing), with the config's own batch over the
slice's chips. Prints tables and writes JSON (--output). Every figure is static: compiled, never run. Time is XLA's own
estimate, too high for element-wise operations and without Pallas kernels. --largest-batch searches for the largest
batch that a chip holds: several compilations of minutes each. --config.model.scan=True compiles in a fifth to
a third of the time (docs/tpu.md). Needs libtpu: pip install -e ".[tpu-report]".
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from tnt_jax.tools import command_line
from tnt_jax.tools.tpu import chips
from tnt_jax.tools.tpu.costs import estimate
from tnt_jax.tools.tpu.report import as_text, describe
from tnt_jax.tools.tpu.search import largest_batch
from tnt_jax.tools.tpu.step import CompiledStep, compile_step
from tnt_jax.training.config import Config, check_config
from tnt_jax.training.runtime import limit_tiles
from tnt_jax.workdir import write_atomically


def make_report(options: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Returns the dict of tpu.report.describe, with `largest_batch` if options ask for it.

    Raises ValueError with the fix, OSError if --hlo cannot be written, and ImportError without libtpu.
    """
    topology = options.topology
    limit_tiles(config)
    chip, devices = chips.chip_of(topology), chips.devices_of(topology)
    num_classes = count_classes(options.num_classes, config)

    def compile_with(batch_size: int) -> CompiledStep:
        per_chip = batch_size // len(devices)
        print(f"compiling {per_chip} images per chip for {topology}; this takes minutes", file=sys.stderr, flush=True)
        settings = dataclasses.replace(config, batch_size=batch_size)
        return compile_step(settings, num_classes, devices, options.examples)

    step = compile_with(config.batch_size)
    if options.hlo and step.text:
        write_atomically(options.hlo, step.text)
    costs = None if step.text is None else estimate(step.text, chip, len(devices))
    found = describe(config, topology, chip, len(devices), step, costs)
    found["libtpu_init_args"] = os.environ.get("LIBTPU_INIT_ARGS", "")  # includes the tile size of scanned blocks
    if options.largest_batch:
        unit = options.batch_unit * config.accumulation_steps
        per_chip = lambda batch: compile_with(batch * len(devices))  # noqa: E731
        largest, tried = largest_batch(step, per_chip, chip.hbm_bytes, unit)
        found["largest_batch"] = {"batch_per_chip": largest, "unit": unit, "tried": tried}
    found["versions"] = {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "flax")}
    found["command"] = " ".join(["python -m tnt_jax.tools.tpu_report", *sys.argv[1:]])
    return found


def count_classes(given: int | None, config: Config) -> int:
    """Returns the number of --num-classes, the config or its data set, which need not exist unless it is a folder."""
    from tnt_jax.data import sources

    if given or config.model.num_classes:
        return given or config.model.num_classes
    try:
        return sources.classes(config.data)[0]
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"The number of classes is not known ({error}). Give --num-classes=N.") from error


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command-line arguments -> options. Checks the folders of output files now, not after minutes of compiling."""
    parser = command_line.Parser("tpu_report", __doc__)
    parser.add_config()
    parser.add_argument("--topology", help="the slice, GENERATION:CHIPSxCHIPS[xCHIPS]: v5e:4x8, v4:2x2x1")
    positive = command_line.at_least(1)
    parser.add_argument("--num-classes", type=positive, help="of the head, if neither config nor data set has it")
    parser.add_argument("--examples", help="with data.on_device: size of the training set, COUNTxHEIGHTxWIDTH")
    parser.add_argument("--largest-batch", action="store_true", help="search for the largest batch that a chip holds")
    unit = "step of the search, in images per chip (default 8)"
    parser.add_argument("--batch-unit", type=positive, default=8, help=unit)
    parser.add_argument("--hlo", type=command_line.path, help="output file for the compiled program's text")
    parser.add_argument(
        "--output", type=command_line.path, default="tpu_report.json", help="JSON (default tpu_report.json)"
    )
    options = parser.parse(arguments)
    for name, example in (("config", "configs/imagenet_tnt_b.py"), ("topology", "v5e:4x8")):
        if getattr(options, name) is None:
            parser.error(f"--{name} is missing, such as --{name}={example}.")
    for name in ("hlo", "output"):
        if (path := getattr(options, name)) and not path.absolute().parent.is_dir():
            parser.error(f"--{name}={path}: there is no folder {path.parent}. Make it, or name another.")
    if options.examples is not None:
        sizes = options.examples.split("x")
        if len(sizes) != 3 or not all(each.isdecimal() and int(each) for each in sizes):
            parser.error(f"--examples={options.examples}: must be COUNTxHEIGHTxWIDTH, such as 50000x32x32.")
        options.examples = tuple(map(int, sizes))
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables and writes the JSON file."""
    options = parse(arguments)
    # Only the compiler is needed; a local accelerator stays free.
    jax.config.update("jax_platforms", "cpu")
    with command_line.one_message("tpu_report", ImportError):
        found = make_report(options, check_config(command_line.read_config(options)))
        print(as_text(found))
        write_atomically(options.output, json.dumps(found, indent=2) + "\n")
    print(f"\nWritten to {options.output}")


if __name__ == "__main__":
    main()
