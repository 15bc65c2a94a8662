"""Cost estimate of a compiled program on a chip, from the program's text. Nothing runs.

An operation costs XLA's estimated_cycles (5 to 10 times too high for element-wise fusions: compare like with like). A
sum over chips costs at least its traffic between them. Not in it: Pallas kernels, of which XLA knows nothing,
asynchronous copies, stalls, waiting for other chips.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from tnt_jax.models.complexity import module_scopes
from tnt_jax.tools.tpu.chips import Chip
from tnt_jax.tools.tpu.hlo import Operation, Program

BASIS = "XLA's estimated_cycles, too high for element-wise fusions"
_ASYNCHRONOUS = {"copy-start", "slice-start", "async-start", "collective-permute-start"}
_COLLECTIVES = {"all-reduce", "all-reduce-start", "reduce-scatter", "all-gather"}
# Scopes of a step outside the model's modules (training/steps.py names them), and the part that they are.
_SCOPES = {"psum": "all-reduce", "optimizer": "optimizer", "input": "input", "loss": "loss", "drop_path": "drop path"}


@dataclasses.dataclass(frozen=True)
class OperationCost:
    """One operation of the program, all its trips together; cycles of one chip."""

    name: str
    opcode: str
    shape: str
    source: str
    part: str
    trips: int
    cycles: float
    is_kernel: bool  # written in Pallas


@dataclasses.dataclass(frozen=True)
class CostEstimate:
    """A whole program, one operation after the other, asynchronous copies left out."""

    operations: list[OperationCost]
    uncounted_loops: list[str]

    @property
    def unknown_kernels(self) -> int:
        """Pallas kernels, whose cost is not known."""
        return sum(each.is_kernel and not each.cycles for each in self.operations)

    @property
    def cycles(self) -> float:
        """Of all operations."""
        return sum(each.cycles for each in self.operations)

    def top(self, count: int) -> list[OperationCost]:
        """The operations that cost most."""
        return sorted(self.operations, key=lambda each: -each.cycles)[:count]

    def by_part(self) -> dict[str, float]:
        """Part of the step -> cycles of its operations."""
        found: dict[str, float] = {}
        for each in self.operations:
            found[each.part] = found.get(each.part, 0.0) + each.cycles
        return found


def estimate(text: str, chip: Chip, device_count: int = 1) -> CostEstimate:
    """A compiled program's text, a chip and how many of them run it -> the costs of its operations."""
    program = Program(text)
    operations = [each for each in program.operations() if each.instruction.opcode not in _ASYNCHRONOUS]
    return CostEstimate([operation_cost(each, chip, device_count) for each in operations], program.uncounted_loops)


def operation_cost(operation: Operation, chip: Chip, devices: int = 1) -> OperationCost:
    """One operation of a program -> its cost on each of so many chips; no cycles where XLA estimates none."""
    instruction, is_collective = operation.instruction, operation.instruction.opcode in _COLLECTIVES
    cycles = float(instruction.estimated_cycles or 0)
    if is_collective:  # a ring: each chip sends, and receives, all but its own shard, twice
        exchanged = 2 * (devices - 1) / devices * array_bytes(instruction.shape)
        cycles = max(cycles, exchanged / chip.interconnect_bandwidth * chip.clock)
    return OperationCost(
        name=instruction.name,
        opcode=instruction.opcode,
        shape=instruction.shape,
        source=operation.sources[0] if operation.sources else "",
        part="all-reduce" if is_collective else part_of(operation.sources),
        trips=operation.trips,
        cycles=cycles * operation.trips,
        is_kernel='custom_call_target="tpu_custom_call"' in instruction.line,
    )


def array_bytes(shape: str) -> int:
    """An HLO shape, tuples too, such as "(f32[8,128]{1,0}, bf16[4])" -> bytes of its arrays."""
    arrays = re.findall(r"\b[a-z]+(\d+)\[([\d,]*)\]", shape)
    return sum(math.prod(map(int, filter(None, sizes.split(",")))) * int(bits) // 8 for bits, sizes in arrays)


def part_of(sources: Sequence[str]) -> str:
    """Paths of scopes, the operation's own first -> the part that the first one with any names; "other" for none.

    Flax names a scope by its module: the model's parts are its modules.
    """
    return next((part for part in map(_part, sources) if part != "other"), "other")


def _part(source: str) -> str:
    """ "jit(f)/jvp(TNT)/block_3/projection/norm1/mul" -> "projection"."""
    scopes = re.findall(r"[\w.\-]+", source)
    if named := [part for scope, part in _SCOPES.items() if scope in scopes]:
        return named[0]
    modules = module_scopes(source)[:-1]  # the last one is the operation
    if modules:
        return "scan" if modules[0] == "while" else modules[0]
    # Between modules: words added to their sentences, positions, the class token's way out.
    return "residuals" if any(re.match(r"TNT|block_\d", scope) for scope in scopes) else "other"
