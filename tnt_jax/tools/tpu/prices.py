"""What a compiled program costs on a chip by XLA's own estimate, from the program's text. Nothing runs.

An operation costs XLA's estimated_cycles (5 to 10 times too high for element-wise fusions, so compare like with like)
or, where XLA gives none, its padded traffic to and from the high-bandwidth memory. XLA gives none for Pallas kernels:
they are far too cheap. Unseen: stalls, how far asynchronous copies overlap (hence a range), other chips' waiting. A sum
over chips also costs its traffic between them. benchmarks/tpu has another price, for work on kernels.
"""

import dataclasses

from tnt_jax.tools.tpu.chips import Chip
from tnt_jax.tools.tpu.hlo import ARRAY, Operation, Program, array_bytes
from tnt_jax.tools.tpu.parts import part_of

BASIS = "XLA's estimated_cycles, too high for element-wise fusions; padded memory traffic where XLA has none"
_ASYNCHRONOUS = {"copy-start", "slice-start", "async-start", "collective-permute-start"}
_REDUCTIONS = {"all-reduce", "all-reduce-start", "reduce-scatter", "all-gather"}


@dataclasses.dataclass(frozen=True)
class Price:
    """One operation of the program, all its trips together; cycles of one chip."""

    name: str
    opcode: str
    shape: str
    source: str
    part: str
    trips: int
    cycles: float
    hbm_cycles: float  # the padded traffic alone
    xla_cycles: float  # XLA's estimate alone; 0 where it has none
    is_kernel: bool  # written in Pallas
    in_background: bool  # an asynchronous copy: it delays nothing, unless the memory has no more to give


@dataclasses.dataclass(frozen=True)
class PriceList:
    """A whole program."""

    prices: list[Price]
    uncounted_loops: list[str]

    @property
    def unpriced_kernels(self) -> int:
        """Pallas kernels of which only the memory traffic is known."""
        return sum(price.is_kernel and not price.xla_cycles for price in self.prices)

    @property
    def cycles(self) -> float:
        """Of all operations one after the other, asynchronous copies behind them; or all traffic if that is more."""
        return max(sum(price.cycles for price in self.prices if not price.in_background), self.hbm_cycles)

    @property
    def cycles_serial(self) -> float:
        """The same if no asynchronous copy overlaps."""
        return sum(price.cycles for price in self.prices)

    @property
    def hbm_cycles(self) -> float:
        """All traffic at the memory's full speed: nothing runs faster than this."""
        return sum(price.hbm_cycles for price in self.prices)

    @property
    def xla_cycles(self) -> float:
        """The sum of XLA's estimates."""
        return sum(price.xla_cycles for price in self.prices)

    def dearest(self, count: int) -> list[Price]:
        """The operations that cost most."""
        return sorted(self.prices, key=lambda price: -price.cycles)[:count]

    def by_part(self) -> dict[str, float]:
        """Part of the step -> cycles of its operations, asynchronous copies left out."""
        found: dict[str, float] = {}
        for price in self.prices:
            if not price.in_background:
                found[price.part] = found.get(price.part, 0.0) + price.cycles
        return found


def price(text: str, chip: Chip, device_count: int = 1) -> PriceList:
    """A compiled program's text, a chip and how many of them run it -> the prices of its operations."""
    program = Program(text)
    return PriceList([_price(each, chip, device_count) for each in program.operations()], program.uncounted_loops)


def _price(operation: Operation, chip: Chip, devices: int) -> Price:
    instruction = operation.instruction
    in_background = instruction.opcode in _ASYNCHRONOUS
    hbm_bytes = _copied_bytes(instruction.shape) if in_background else operation.hbm_bytes
    traffic = hbm_bytes / chip.bytes_per_cycle
    estimate = instruction.estimated_cycles
    cycles = traffic if estimate is None else float(estimate)
    if instruction.opcode in _REDUCTIONS:
        cycles = max(cycles, _exchanged_bytes(instruction.shape, devices) / chip.interconnect_bandwidth * chip.clock)
    is_reduction = instruction.opcode in _REDUCTIONS
    return Price(
        name=instruction.name,
        opcode=instruction.opcode,
        shape=instruction.shape,
        source=operation.sources[0] if operation.sources else "",
        part="all-reduce" if is_reduction else part_of(operation.sources),
        trips=operation.trips,
        cycles=cycles * operation.trips,
        hbm_cycles=traffic * operation.trips,
        xla_cycles=float(estimate or 0) * operation.trips,
        is_kernel='custom_call_target="tpu_custom_call"' in instruction.line,
        in_background=in_background,
    )


def _copied_bytes(shape: str) -> int:
    """The shape of an asynchronous copy's start, (destination, source, ...) -> bytes to and from the memory."""
    arrays = [match.group(0) for match in ARRAY.finditer(shape)]
    copied = min((array_bytes(array, everywhere=True) for array in arrays[:2]), default=0)
    return copied * sum("S(" not in array for array in arrays[:2])


def _exchanged_bytes(shape: str, devices: int) -> float:
    """A ring's traffic for a sum over so many chips: each sends (and receives) all but its share, twice."""
    return 2 * (devices - 1) / devices * array_bytes(shape, everywhere=True)
