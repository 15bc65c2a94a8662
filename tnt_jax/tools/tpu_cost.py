"""The price of a function on a TPU, forward or with its backward pass, on a machine without a TPU.

    from tnt_jax.tools.tpu_cost import cost
    print(cost(block, jax.ShapeDtypeStruct((128, 197, 384), jnp.bfloat16), topology="v5e:2x2", gradient=True))

libtpu compiles for one chip of a topology and dumps the final instruction bundles; tools/tpu/prices.py says what a
price is. Static: compiled, never run. Needs libtpu (the extra tpu-report), and that this process has not loaded
it before without the dump.
"""

import atexit
import dataclasses
import functools
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tnt_jax.tools.tpu.chips import chip_of, devices_of
from tnt_jax.tools.tpu.prices import PriceList, price


@dataclasses.dataclass(frozen=True)
class Cost:
    """What `cost` found; cycles of one chip, see tools/tpu/prices.py."""

    prices: PriceList
    temp_bytes: int
    compile_seconds: float
    seconds: float  # prices.cycles at the chip's clock

    def __str__(self) -> str:
        found = self.prices
        lines = [
            f"cycles {found.cycles / 1e6:.2f}M..{found.cycles_serial / 1e6:.2f}M (basis: {found.basis})  "
            f"XLA's estimate {found.xla_cycles / 1e6:.2f}M  memory traffic {found.hbm_cycles / 1e6:.2f}M  "
            f"{self.seconds * 1e3:.2f} ms  temp {self.temp_bytes / 1e9:.2f} GB  "
            f"compiled in {self.compile_seconds:.0f} s; static: compiled, never run"
        ]
        for each in found.dearest(8):
            times = f"{each.trips} x " if each.trips > 1 else ""
            shape, source = each.shape[:44], each.source[-60:]
            lines.append(f"  {each.cycles / 1e3:8.0f}k {times}{each.name:32s} {shape:44s} {source}")
        return "\n".join(lines)


@functools.cache
def bundle_folder() -> Path:
    """The process's folder of dumps, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="tpu_bundles_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def empty(folder: Path) -> None:
    """Removes the dumps of earlier compilations."""
    for path in folder.iterdir():
        path.unlink()


def cost(function: Callable[..., Any], *arguments: Any, topology: str = "v5e:2x2", gradient: bool = False) -> Cost:
    """Compiles a function of trees of arrays or jax.ShapeDtypeStruct for one chip of a topology, and prices it.

    gradient: its forward pass, and the backward pass to all arguments of floating point. Raises ValueError for a
    topology that does not exist, ImportError without libtpu.
    """
    folder = bundle_folder()
    device = devices_of(topology, dump=folder)[0]
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
    prices = price(compiled.as_text(), chip, dump=folder)
    temp_bytes = compiled.memory_analysis().temp_size_in_bytes
    return Cost(prices, temp_bytes, seconds, prices.cycles / chip.clock)
