"""The training step of a config on a slice of TPUs, without one: does it fit, what does it cost, where does time go.

    python -m tnt_jax.tools.tpu_report --config=configs/imagenet_tnt_b.py --topology=v5e:4x8 [--config.KEY=VALUE ...]

Compiles the step that the loop would run (pmapped, donated, AdamW, moving average, mixing) with the config's own batch
over the slice's chips, prints tables and writes JSON (--output). Every figure is static: compiled, never run. Time is
XLA's own estimate, too high for element-wise operations and without Pallas kernels. --largest-batch searches the
largest batch a chip holds: several compilations of minutes each. --config.model.scan=True compiles in less than half
the time, TNT-S in less than a quarter (config.scan_tile_kib). Needs libtpu: pip install -e ".[tpu-report]".
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from tnt_jax.tools import arguments as command_line
from tnt_jax.tools import be_quiet

FLAGS = flags.FlagValues()  # of this program alone: other programs have a --config of their own
CONFIG = config_flags.DEFINE_config_file("config", None, "One of configs/*.py.", flag_values=FLAGS)


def _define(kind: Any, name: str, default: Any, *others: Any, **settings: Any) -> None:
    kind(name, default, *others, flag_values=FLAGS, **settings)


_define(flags.DEFINE_string, "topology", None, "The slice, as GENERATION:CHIPSxCHIPS[xCHIPS]: v5e:4x8, v4:2x2x1.")
_define(flags.DEFINE_integer, "num_classes", None, "Of the head, where neither config nor data set say.", lower_bound=1)
_define(flags.DEFINE_string, "examples", None, "With data.on_device: the training set, as COUNTxHEIGHTxWIDTH.")
_define(flags.DEFINE_bool, "largest_batch", False, "Search the largest batch a chip holds.")
_define(flags.DEFINE_integer, "batch_unit", 8, "The search is exact to so many images a chip.", lower_bound=1)
_define(flags.DEFINE_string, "hlo", None, "File for the compiled program's text, to look further.")
_define(flags.DEFINE_string, "output", "tpu_report.json", "File for the figures as JSON.")


def make_report(config: Any, topology: str) -> dict[str, Any]:
    """A config and a slice's name -> see tpu.report.describe, with `largest_batch` where it is asked for.

    Raises ValueError for what cannot work, with the fix, OSError for --hlo, and ImportError without libtpu.
    """
    from tnt_jax.tools.tpu import chips
    from tnt_jax.tools.tpu.prices import price
    from tnt_jax.tools.tpu.report import describe
    from tnt_jax.tools.tpu.search import largest_batch
    from tnt_jax.tools.tpu.step import compile_step
    from tnt_jax.training.config import check_config
    from tnt_jax.training.runtime import limit_tiles

    experiment = check_config(config)
    limit_tiles(experiment)
    chip = chips.chip_of(topology)
    devices = chips.devices_of(topology)
    num_classes = count_classes(experiment)
    examples = sizes_of(FLAGS.examples) if FLAGS.examples else None

    def compile_with(batch_per_chip: int) -> Any:
        say(f"compiling a batch of {batch_per_chip} a chip for {topology}; this takes minutes")
        batch = {"batch_size": batch_per_chip * len(devices)}
        return compile_step(dataclasses.replace(experiment, **batch), num_classes, devices, examples)

    say(f"compiling for {topology}; this takes minutes")
    step = compile_step(experiment, num_classes, devices, examples)
    if FLAGS.hlo and step.text:
        Path(FLAGS.hlo).write_text(step.text)
    prices = None if step.text is None else price(step.text, chip, len(devices))
    found = describe(experiment, topology, chip, len(devices), step, prices)
    found["libtpu_init_args"] = os.environ.get("LIBTPU_INIT_ARGS", "")  # the tiles of scanned blocks among them
    if FLAGS.largest_batch:
        unit = FLAGS.batch_unit * experiment.accumulation_steps
        largest, tried = largest_batch(step, compile_with, chip.hbm_bytes, unit)
        found["largest_batch"] = {"batch_per_chip": largest, "unit": unit, "tried": tried}
    return found


def sizes_of(text: str) -> tuple[int, int, int]:
    """ "50000x32x32" -> (50000, 32, 32)."""
    numbers = text.split("x")
    if len(numbers) != 3 or not all(each.isdecimal() and int(each) for each in numbers):
        raise ValueError(f"--examples={text}: must be COUNTxHEIGHTxWIDTH, such as 50000x32x32.")
    return tuple(map(int, numbers))


def check_folders() -> None:
    """Raises ValueError where a file that is written after minutes of compiling has no folder to go to."""
    for name, path in (("hlo", FLAGS.hlo), ("output", FLAGS.output)):
        if path and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"--{name}={path}: there is no folder {Path(path).parent}. Make it, or name another.")


def count_classes(experiment: Any) -> int:
    """Of --num-classes, the config, or its data set; the set itself need not be there unless it is a folder."""
    from tnt_jax.training import setup

    if FLAGS.num_classes or experiment.model.num_classes:
        return FLAGS.num_classes or experiment.model.num_classes
    try:
        return setup.data_classes(experiment)[0]
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"The number of classes is not known ({error}). Give --num-classes=N.") from error


def versions() -> dict[str, str]:
    """Of what compiled."""
    from importlib import metadata

    return {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "flax")}


def say(text: str) -> None:
    """Progress, beside the report."""
    print(text, file=sys.stderr, flush=True)


def main(_: Sequence[str]) -> None:
    """Prints the tables and writes the file."""
    be_quiet()
    # Only a compiler is needed, and on a machine with an accelerator it stays free.
    jax.config.update("jax_platforms", "cpu")
    for name, value in (("config", CONFIG.value), ("topology", FLAGS.topology)):
        if value is None:
            command_line.stop(f"--{name} is missing, such as --{name}={EXAMPLE[name]}.", "tpu_report")
    try:
        check_folders()
        found = make_report(CONFIG.value, FLAGS.topology)
    except (ImportError, ValueError, OSError) as error:
        command_line.stop(error, "tpu_report")
    from tnt_jax.tools.tpu.report import as_text

    found["versions"] = versions()
    found["command"] = " ".join(["python -m tnt_jax.tools.tpu_report", *sys.argv[1:]])
    print(as_text(found))
    Path(FLAGS.output).write_text(json.dumps(found, indent=2) + "\n")
    print(f"\nWritten to {FLAGS.output}")


EXAMPLE = {"config": "configs/imagenet_tnt_b.py", "topology": "v5e:4x8"}

if __name__ == "__main__":
    command_line.run(main, "tpu_report", FLAGS)
