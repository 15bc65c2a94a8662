"""Estimates the cost of a function on a TPU, with or without its backward pass, on a machine without a TPU.

    from benchmarks.tpu.cost import cost
    print(cost(block, jax.ShapeDtypeStruct((128, 197, 384), jnp.bfloat16), topology="v5e:2x2", gradient=True))

libtpu compiles for one chip of a topology and dumps its final instruction bundles, in an undocumented format. An
operation costs the greater of its bundles and its padded memory traffic, without stalls. Static: compiled, never run,
and never checked on a TPU. Needs libtpu (the extra tpu-report), which this process must not have loaded yet.
"""

import atexit
import dataclasses
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.tpu import bundles
from benchmarks.tpu.traffic import ASYNCHRONOUS, traffic
from tnt_jax.tools.tpu.chips import Chip, chip_of, devices_of
from tnt_jax.tools.tpu.costs import CostEstimate, operation_cost
from tnt_jax.tools.tpu.hlo import Program


@dataclasses.dataclass(frozen=True)
class BundleEstimate(CostEstimate):
    """Estimate of a whole program by its bundles, in cycles of one chip."""

    hbm_cycles: float  # all traffic at the memory's full speed: a lower bound
    copy_cycles: float  # of asynchronous copies, which delay nothing until the memory is saturated
    xla_cycles: float  # the sum of XLA's own estimates

    @property
    def cycles(self) -> float:
        """Of all operations in sequence, with asynchronous copies hidden; or of all traffic if that is more."""
        return max(sum(each.cycles for each in self.operations), self.hbm_cycles)

    @property
    def cycles_serial(self) -> float:
        """The same if no asynchronous copy is hidden."""
        return sum(each.cycles for each in self.operations) + self.copy_cycles


@dataclasses.dataclass(frozen=True)
class Cost:
    """Result of `cost`."""

    estimate: BundleEstimate
    temp_bytes: int
    compile_seconds: float
    seconds: float  # estimate.cycles at the chip's clock

    def __str__(self) -> str:
        found = self.estimate
        lines = [
            f"cycles {found.cycles / 1e6:.2f}M..{found.cycles_serial / 1e6:.2f}M by bundles  "
            f"XLA's estimate {found.xla_cycles / 1e6:.2f}M  memory traffic {found.hbm_cycles / 1e6:.2f}M  "
            f"{self.seconds * 1e3:.2f} ms  temp {self.temp_bytes / 1e9:.2f} GB  "
            f"compiled in {self.compile_seconds:.0f} s; static: compiled, never run"
        ]
        for each in found.top(8):
            times = f"{each.trips} x " if each.trips > 1 else ""
            shape, source = each.shape[:44], each.source[-60:]
            lines.append(f"  {each.cycles / 1e3:8.0f}k {times}{each.name:32s} {shape:44s} {source}")
        return "\n".join(lines)


@functools.cache
def bundle_folder() -> Path:
    """Returns the process's folder of dumps, which is removed when it ends.

    Raises:
      RuntimeError: libtpu, which reads the folder's name when it is loaded, is loaded already.
    """
    if "libtpu" in Path("/proc/self/maps").read_text():
        raise RuntimeError("libtpu is loaded already, without the dump of its bundles: start a new process.")
    folder = Path(tempfile.mkdtemp(prefix="tpu_bundles_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # Without the pass filter even a small program dumps hundreds of megabytes.
    dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
    os.environ["LIBTPU_INIT_ARGS"] = f"{dump} {os.environ.get('LIBTPU_INIT_ARGS', '')}".strip()
    return folder


def by_bundles(text: str, chip: Chip, folder: Path, device_count: int = 1) -> BundleEstimate:
    """A program's text and its folder of dumps -> each operation's bundles, or its memory traffic if that is more."""
    program, files = Program(text), bundles.dumped(folder)
    bytes_per_cycle = chip.hbm_bandwidth / chip.clock
    costs, hbm, copies, xla = [], 0.0, 0.0, 0.0
    for operation in program.operations():
        traffic_cycles = traffic(program, operation) / bytes_per_cycle * operation.trips
        hbm += traffic_cycles
        if operation.instruction.opcode in ASYNCHRONOUS:
            copies += traffic_cycles
            continue
        each = operation_cost(operation, chip, device_count)
        xla += (operation.instruction.estimated_cycles or 0) * operation.trips
        least = max(each.cycles, traffic_cycles) if each.part == "all-reduce" else traffic_cycles  # between chips, too
        counted = bundles.cycles(files[each.name]) if each.name in files else 0
        costs.append(dataclasses.replace(each, cycles=max(counted * each.trips, least)))
    return BundleEstimate(costs, program.uncounted_loops, hbm, copies, xla)


def empty(folder: Path) -> None:
    """Removes the dumps of earlier compilations."""
    for path in folder.iterdir():
        path.unlink()


def cost(function: Callable[..., Any], *arguments: Any, topology: str = "v5e:2x2", gradient: bool = False) -> Cost:
    """Compiles a function of trees of arrays or jax.ShapeDtypeStruct for one chip of a topology -> its cost.

    gradient: adds the backward pass to all floating-point arguments. Raises ValueError for an unknown topology,
    ImportError without libtpu.
    """
    folder = bundle_folder()
    device = devices_of(topology)[0]
    empty(folder)
    mesh = jax.sharding.Mesh(np.array([device]), ("chip",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), arguments)

    def both(*arguments: Any) -> Any:
        outputs, pull = jax.vjp(function, *arguments)
        return outputs, pull(jax.tree.map(jnp.ones_like, outputs))

    start = time.perf_counter()
    compiled = jax.jit(both if gradient else function).lower(*shapes).compile()
    seconds = time.perf_counter() - start
    chip = chip_of(topology)
    found = by_bundles(compiled.as_text(), chip, folder)
    temp_bytes = compiled.memory_analysis().temp_size_in_bytes
    return Cost(found, temp_bytes, seconds, found.cycles / chip.clock)
