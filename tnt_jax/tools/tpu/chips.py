"""TPU generations by their data sheets, and topologies to compile for on a machine without a TPU.

Figures are per chip, which is one jax device: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e). The clock follows from the
peak: each matrix unit does 128 x 128 multiply-adds per cycle (256 x 256 on v6e), two FLOPs each; v4's 1.05 GHz is also
in arXiv 2304.01433.
"""

import dataclasses
import importlib.util
import os
import re

import jax

from tnt_jax.training.monitor import peak_flops

EXAMPLES = "v4:2x2x1, v4:4x4x4, v5e:2x2, v5e:4x8, v5p:2x2x2, v6e:2x2, v6e:4x8"
MISSING_LIBTPU = (
    "libtpu, the compiler for TPUs, is missing. Install it beside jax: pip install 'jax[tpu]' (the extra tpu-report; "
    "700 MB; it needs no TPU and occupies none)."
)
# Environment variables that libtpu reads when it is loaded.
LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask a metadata server for the machine's own TPU
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling takes no chip from another process
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip of a generation."""

    device_kind: str  # as jax names it
    hbm_gib: float  # GiB
    hbm_bandwidth: float  # bytes/s
    interconnect_bandwidth: float  # bytes/s, sum over a chip's links, as in the data sheets
    multiply_adds_per_cycle: int  # sum over matrix units

    @property
    def peak(self) -> float:
        """Dense bfloat16 peak in FLOP/s."""
        return peak_flops(self.device_kind)

    @property
    def clock(self) -> float:
        """Cycles per second."""
        return self.peak / (2 * self.multiply_adds_per_cycle)

    @property
    def hbm_bytes(self) -> int:
        """Size of the high-bandwidth memory; compiler and runtime reserve a little of it."""
        return int(self.hbm_gib * 2**30)


CHIPS = {
    "v4": Chip("TPU v4", 32, 1228e9, 300e9, 8 * 128 * 128),
    "v5e": Chip("TPU v5 lite", 16, 819e9, 200e9, 4 * 128 * 128),
    "v5p": Chip("TPU v5", 95, 2765e9, 600e9, 8 * 128 * 128),
    "v6e": Chip("TPU v6 lite", 32, 1640e9, 448e9, 4 * 256 * 256),
}


def chip_of(topology: str) -> Chip:
    """ "v5e:4x8" -> its generation's figures. Raises ValueError for a malformed name."""
    name, _, shape = topology.partition(":")
    if name not in CHIPS:
        raise ValueError(f"--topology={topology}: {name!r} is not one of {', '.join(CHIPS)}. Examples: {EXAMPLES}.")
    dimensions = 3 if name in ("v4", "v5p") else 2
    if not re.fullmatch(r"\d+" + r"x\d+" * (dimensions - 1), shape):
        raise ValueError(
            f"--topology={topology}: the slices of {name} have {dimensions} dimensions, such as "
            f"{name}:{'2x2' if dimensions == 2 else '2x2x1'}. Examples: {EXAMPLES}."
        )
    return CHIPS[name]


def devices_of(topology: str) -> list[jax.Device]:
    """ "v5e:4x8" -> its devices, only to compile for. Loads libtpu, which occupies no TPU.

    Raises ValueError for a slice that does not exist, ImportError without libtpu.
    """
    chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(MISSING_LIBTPU)
    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    # On v4 a jax device is a whole chip; by default libtpu would make a device of each of its two cores.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return topologies.get_topology_desc(topology_name=topology, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        cause = str(error).splitlines()[0]
        raise ValueError(
            f"--topology={topology}: libtpu knows no such slice ({cause}). Examples: {EXAMPLES}."
        ) from error
