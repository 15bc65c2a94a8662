"""Instruction bundles that libtpu dumps for each operation -> cycles, counting the iterations of loops.

A TPU core issues one bundle (a very long instruction word) per cycle unless it stalls. Each line of a dump is a bundle
with its address, control flow marks ("LB" at the start of a loop's body) and a ">" for each loop around it.
"""

import dataclasses
import re
from pathlib import Path

_BUNDLE = re.compile(r"\s*0x[0-9a-f]+\s+((?:[A-Z]{2}(?:[ ,]+|(?=:)))*)\s*:\s*((?:> ?)*)")
_EXIT_TEST = re.compile(r"scmp\.ge\.s32\.totalorder %s\w+, (\d+) /\* loop exit test")
_ANY_TEST = re.compile(r"scmp\.ge\.s32\.totalorder %s\w+, (\d+)")
_FILE = re.compile(r"\d+-(.*?)-(?:\d+-)?final_bundles\.txt")


@dataclasses.dataclass
class _Bundle:
    begins_loop: bool
    depth: int
    text: str


def dumped(folder: Path) -> dict[str, Path]:
    """A folder of dumps -> the file of each operation, by the operation's name."""
    found = {path: _FILE.fullmatch(path.name) for path in sorted(folder.glob("*final_bundles.txt"))}
    return {match.group(1): path for path, match in found.items() if match and "schedule-analysis" not in path.name}


def cycles(path: Path) -> int:
    """A dump -> its bundles, those of a loop times its iterations; a loop without a constant count counts once."""
    bundles: list[_Bundle] = []
    for line in path.read_text(errors="replace").splitlines():
        found = _BUNDLE.match(line)
        if found:
            depth = found.group(2).count(">")
            if depth == 0 and "{}" in line and bundles:  # an empty bundle does not show its depth
                depth = bundles[-1].depth
            bundles.append(_Bundle("LB" in found.group(1), depth, line))
    return _total(bundles, 0)


def _total(bundles: list[_Bundle], depth: int) -> int:
    """Returns the cycles of bundles that are at least this deep in loops."""
    total, at = 0, 0
    while at < len(bundles):
        if not (bundles[at].begins_loop and bundles[at].depth > depth):
            total, at = total + 1, at + 1
            continue
        inside = bundles[at].depth
        end = at + 1
        while end < len(bundles) and bundles[end].depth >= inside:
            if bundles[end].begins_loop and bundles[end].depth == inside:
                break
            end += 1
        body = bundles[at:end]
        total += _turns(body) * (1 + _total(body[1:], inside))
        at = end
    return total


def _turns(body: list[_Bundle]) -> int:
    """A loop's bundles -> the constant of its exit test, 1 if there is none."""
    depth = body[0].depth
    own = "\n".join(bundle.text for bundle in body if bundle.depth == depth)
    found = _EXIT_TEST.findall(own) or (_ANY_TEST.findall(own) if depth > 1 else [])
    return int(found[-1]) if found else 1
