"""Estimates the cost of a compiled program on a chip from the program's text. Nothing runs.

An operation costs XLA's estimated_cycles (5 to 10 times too high for element-wise fusions: compare like with like). A
collective costs at least its traffic between chips. Not included: Pallas kernels, which XLA does not estimate,
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
# Scopes of a step outside the model's modules (named in training/steps.py) -> the part of the step.
_SCOPES = {"psum": "all-reduce", "optimizer": "optimizer", "input": "input", "loss": "loss", "drop_path": "drop path"}


@dataclasses.dataclass(frozen=True)
class OperationCost:
    """One operation of the program: cycles of one chip, summed over its trips."""

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
    """The operations of a whole program, one after the other, without asynchronous copies."""

    operations: list[OperationCost]
    uncounted_loops: list[str]

    @property
    def unknown_kernels(self) -> int:
        """Number of Pallas kernels without a known cost."""
        return sum(each.is_kernel and not each.cycles for each in self.operations)

    @property
    def cycles(self) -> float:
        """Sum over all operations."""
        return sum(each.cycles for each in self.operations)

    def top(self, count: int) -> list[OperationCost]:
        """Returns the `count` most expensive operations."""
        return sorted(self.operations, key=lambda each: -each.cycles)[:count]

    def by_part(self) -> dict[str, float]:
        """Part of the step -> cycles of its operations."""
        found: dict[str, float] = {}
        for each in self.operations:
            found[each.part] = found.get(each.part, 0.0) + each.cycles
        return found


def estimate(text: str, chip: Chip, device_count: int = 1) -> CostEstimate:
    """A compiled program's text, a chip and the number of chips -> the costs of its operations."""
    program = Program(text)
    operations = [each for each in program.operations() if each.instruction.opcode not in _ASYNCHRONOUS]
    return CostEstimate([operation_cost(each, chip, device_count) for each in operations], program.uncounted_loops)


def operation_cost(operation: Operation, chip: Chip, devices: int = 1) -> OperationCost:
    """One operation -> its cost on each of so many devices; 0 cycles where XLA has no estimate."""
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
    """An HLO shape or tuple, such as "(f32[8,128]{1,0}, bf16[4])" -> bytes of its arrays."""
    arrays = re.findall(r"\b[a-z]+(\d+)\[([\d,]*)\]", shape)
    return sum(math.prod(map(int, filter(None, sizes.split(",")))) * int(bits) // 8 for bits, sizes in arrays)


def part_of(sources: Sequence[str]) -> str:
    """Scope paths, the operation's own first -> the part of the first path that has one, or "other".

    Flax names scopes after modules, so the model's parts are its modules.
    """
    return next((part for part in map(_part, sources) if part != "other"), "other")


def _part(source: str) -> str:
    """ "jit(f)/jvp(TNT)/block_3/projection/norm1/mul" -> "projection"."""
    scopes = re.findall(r"[\w.\-]+", source)
    if named := [part for scope, part in _SCOPES.items() if scope in scopes]:
        return named[0]
    modules = module_scopes(source)[:-1]  # the last is the operation
    if modules:
        return "scan" if modules[0] == "while" else modules[0]
    # Between modules: adding words to their sentences, adding positions, taking the class token.
    return "residuals" if any(re.match(r"TNT|block_\d", scope) for scope in scopes) else "other"
