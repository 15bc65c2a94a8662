"""Counts the bytes that an operation of a compiled program reads from and writes to a TPU's HBM."""

import functools
import math
import re

from tnt_jax.tools.tpu.hlo import Instruction, Operation, Program

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
ITEM_BYTES |= {"s64": 8, "u64": 8, "f64": 8}
ARRAY = re.compile(rf"\b({'|'.join(ITEM_BYTES)})\[([\d,]*)\](\{{[^}}]*\}})?")
ASYNCHRONOUS = {"copy-start", "slice-start", "async-start", "collective-permute-start"}


def traffic(program: Program, operation: Operation) -> int:
    """-> bytes of one trip, including the padding of tiles.

    For a slice of a large array, read or updated in place (a scan's stacked parameters and activations), only the bytes
    of the slice count.
    """
    instruction = operation.instruction
    if instruction.opcode in ASYNCHRONOUS:
        return _copied_bytes(instruction.shape)
    shapes = program.computations[operation.computation]
    reads = [shapes[name].shape if name in shapes else "" for name in instruction.operands]
    fused = program.computations.get(instruction.attribute("calls") or "")
    if fused is None:
        if instruction.opcode == "dynamic-slice":
            return 2 * array_bytes(instruction.shape)
        if instruction.opcode == "dynamic-update-slice":
            return 2 * array_bytes(reads[1])
        return array_bytes(instruction.shape) + sum(map(array_bytes, reads))
    fusion = _Fusion(fused, program.computations)
    return fusion.written(instruction.shape) + sum(fusion.read(number, shape) for number, shape in enumerate(reads))


def _copied_bytes(shape: str) -> int:
    """Shape (destination, source, ...) of the start of an asynchronous copy -> bytes to and from HBM."""
    arrays = [match.group(0) for match in ARRAY.finditer(shape)]
    copied = min((array_bytes(array, everywhere=True) for array in arrays[:2]), default=0)
    return copied * sum("S(" not in array for array in arrays[:2])


class _Fusion:
    """The bytes of its operands and result that a fused computation, with its inner fusions, reads and writes."""

    def __init__(self, instructions: dict[str, Instruction], computations: dict[str, dict[str, Instruction]]) -> None:
        self._instructions, self._computations = instructions, computations
        self._users: dict[str, list[Instruction]] = {name: [] for name in instructions}
        for each in instructions.values():
            for operand in each.operands:
                self._users.setdefault(operand, []).append(each)

    @functools.cached_property
    def _parameters(self) -> dict[int, str]:
        found = {}
        for each in self._instructions.values():
            if each.opcode == "parameter":
                found[int(re.search(r"parameter\((\d+)\)", each.line).group(1))] = each.name
        return found

    def _inside(self, instruction: Instruction) -> "_Fusion | None":
        called = self._computations.get(instruction.attribute("calls") or "")
        return None if called is None else _Fusion(called, self._computations)

    def read(self, number: int, shape: str) -> int:
        """Returns the bytes read of an operand of this shape; of slices only, if nothing else reads it."""
        whole = array_bytes(shape)
        if not whole or number not in self._parameters:
            return whole
        touched = 0
        waiting = [self._parameters[number]]
        while waiting:
            name = waiting.pop()
            for user in self._users[name]:
                if user.opcode == "bitcast":
                    waiting.append(user.name)
                elif user.opcode == "dynamic-slice" and user.operands[0] == name:
                    touched += array_bytes(user.shape, everywhere=True)
                elif inner := self._inside(user):
                    places = [place for place, operand in enumerate(user.operands) if operand == name]
                    touched += sum(inner.read(place, shape) for place in places)
                elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                    return whole
        return min(touched, whole)

    def written(self, shape: str) -> int:
        """Returns the bytes written of a result of this shape; of the update only, if it is in place."""
        root = next(each for each in self._instructions.values() if each.is_root)
        if root.opcode != "tuple":
            return self._written(root, shape)
        parts = [match.group(0) for match in ARRAY.finditer(shape)]
        if len(parts) != len(root.operands):
            return array_bytes(shape)
        return sum(
            self._written(self._instructions[name], part) for name, part in zip(root.operands, parts, strict=True)
        )

    def _written(self, result: Instruction, shape: str) -> int:
        while result.opcode == "bitcast":
            result = self._instructions[result.operands[0]]
        whole = array_bytes(shape)
        if whole and (inner := self._inside(result)):
            return inner.written(shape)
        if result.opcode != "dynamic-update-slice" or not whole:
            return whole
        return min(array_bytes(self._instructions[result.operands[1]].shape, everywhere=True), whole)


def array_bytes(shape: str, everywhere: bool = False) -> int:
    """An HLO shape, possibly a tuple -> bytes of its arrays, padded to their tiles.

    Arrays in on-chip memory ("S(1)" in the layout) do not count, unless `everywhere`.
    """
    return sum(
        _padded_items(dims, layout or "") * ITEM_BYTES[dtype]
        for dtype, dims, layout in ARRAY.findall(shape)
        if everywhere or "S(" not in (layout or "")
    )


def _padded_items(dims: str, layout: str) -> int:
    """ "2,3136,24", "{1,2,0:T(8,128)}" -> items, the two innermost dimensions rounded up to the tile."""
    sizes = [int(size) for size in dims.split(",") if size]
    order = [int(axis) for axis in re.match(r"\{([\d,]*)", layout).group(1).split(",") if axis] if layout else []
    inner_first = [sizes[axis] for axis in (order or reversed(range(len(sizes))))]
    tile = re.search(r"T\((\d+),(\d+)\)", layout)
    if tile and len(inner_first) >= 2:
        for place, side in ((0, int(tile.group(2))), (1, int(tile.group(1)))):
            inner_first[place] = math.ceil(inner_first[place] / side) * side
    return math.prod(inner_first)
