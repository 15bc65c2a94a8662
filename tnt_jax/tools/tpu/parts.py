"""Which part of a training step an operation belongs to, by the scopes it was traced in.

Flax names a scope by its module, training/steps.py by jax.named_scope: the model's parts are its modules.
"""

import re
from collections.abc import Sequence

from tnt_jax.models.complexity import module_scopes

# Scopes of a step outside the model's modules, and the part that they are.
_SCOPES = {"psum": "all-reduce", "optimizer": "optimizer", "input": "input", "loss": "loss", "drop_path": "drop path"}


def part_of(sources: Sequence[str]) -> str:
    """Paths of scopes, the operation's own first -> the part that the first one with any names; "other" for none."""
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
