"""Parses the text of a compiled program (optimised HLO) into its operations, each with how often it runs.

They are what a device runs one after the other: the entry computation with the bodies of its loops in place. A fusion
is one operation.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator

# Opcodes without work on the device: most of them name results of other operations.
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "partition-id", "replica-id"}
# Custom calls that only inform the compiler.
_NO_WORK = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the text."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    line: str
    is_root: bool

    def attribute(self, name: str) -> str | None:
        """Returns the computation of an attribute such as body=%NAME, or None."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.line)
        return found.group(1) if found else None

    @property
    def is_free(self) -> bool:
        """Whether the device does nothing for it; "-done" is the second half of an asynchronous operation."""
        target = re.search(r'custom_call_target="([^"]*)"', self.line)
        known = target is not None and target.group(1) in _NO_WORK
        return known or self.opcode in FREE or self.opcode.endswith("-done")

    @property
    def source(self) -> str:
        """Scope path (op_name); empty if the compiler did not keep it."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found.group(1) if found else ""

    @property
    def estimated_cycles(self) -> int | None:
        """XLA's own estimate for a TPU, or None."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.line)
        return int(found.group(1)) if found else None


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction that the device runs, `trips` times a step."""

    instruction: Instruction
    trips: int
    computation: str  # that contains it
    sources: tuple[str, ...]  # scope paths: its own, of what was fused into it (most common first), of its operands


class Program:
    """The parsed text. Raises ValueError for a text without an entry computation."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] | None = None
        text = re.sub(r'\n(?="|}})', "", text)  # an attribute such as a kernel's metadata spans several lines
        for line in text.splitlines():
            header = None if line.startswith((" ", "}")) else _HEADER.match(line)
            if header and " = " not in line.split(" (")[0]:
                current = self.computations.setdefault(header.group(2), {})
                self.entry = header.group(2) if header.group(1) else self.entry
            elif line.startswith("}"):
                current = None
            elif current is not None and (found := _INSTRUCTION.match(line)):
                root, name, shape, opcode, rest = found.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", _arguments(rest)))
                current[name] = Instruction(name, opcode, shape, operands, line, bool(root))
        if not self.entry:
            raise ValueError("the text of the compiled program has no ENTRY computation")

    def operations(self) -> list[Operation]:
        """Returns what the device runs, in the order of the text."""
        self.uncounted_loops: list[str] = []  # without a trip count in the text; their bodies count once
        return list(self._walk(self.entry, 1))

    def _walk(self, computation: str, trips: int) -> Iterator[Operation]:
        for instruction in self.computations[computation].values():
            if instruction.is_free:
                continue
            if instruction.opcode == "while":
                turns = self.turns(instruction)
                if turns is None:
                    self.uncounted_loops.append(instruction.source or instruction.name)
                yield from self._walk(instruction.attribute("body"), trips * (turns or 1))
            elif instruction.opcode == "call":
                yield from self._walk(instruction.attribute("to_apply"), trips)
            elif instruction.opcode == "conditional":
                for branch in re.findall(r"%([\w.\-]+)", instruction.line.split("branch_computations=")[-1]):
                    yield from self._walk(branch, trips) if branch in self.computations else ()
            else:
                yield Operation(instruction, trips, computation, self._sources(computation, instruction))

    def turns(self, loop: Instruction) -> int | None:
        """Returns how often a loop's body runs; None if only known at run time."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.line)
        if known:
            return int(known.group(1))
        condition = self.computations[loop.attribute("condition")]
        root = next(each for each in condition.values() if each.is_root)
        if root.opcode != "compare" or "direction=LT" not in root.line:
            return None
        # jax.lax.scan counts from 0 to a constant.
        limits = [re.search(r"constant\((\d+)\)", condition[name].line) for name in root.operands if name in condition]
        counted = [int(limit.group(1)) for limit in limits if limit]
        return counted[0] if len(counted) == 1 else None

    def _sources(self, computation: str, instruction: Instruction) -> tuple[str, ...]:
        fused = self.computations.get(instruction.attribute("calls") or "", {})
        counts = Counter(each.source for each in fused.values() if "/" in each.source)
        beside = self.computations[computation]
        given = (beside[name].source for name in instruction.operands if name in beside)
        return tuple(filter(None, (instruction.source, *(source for source, _ in counts.most_common()), *given)))


def _arguments(rest: str) -> str:
    """The text after an opening parenthesis -> the text up to the closing one."""
    depth = 1
    for position, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return rest[:position]
    return rest
