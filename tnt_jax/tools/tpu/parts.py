"""Which part of a training step an operation belongs to, by the scopes it was traced in."""

import re
from collections.abc import Sequence

PARTS = (
    "stem",
    "inner",
    "projection",
    "outer",
    "head",
    "optimizer",
    "input",
    "all-reduce",
    "drop path",
    "scan",
    "other",
)
# The first scope that matches decides; Flax names a scope by its module, training/steps.py by jax.named_scope.
_SCOPES = (
    ("all-reduce", {"psum"}),
    ("stem", {"word_embedding", "sentence_embedding", "patch_embedding", "TNT._embed"}),
    ("inner", {"inner"}),
    ("projection", {"projection"}),
    ("outer", {"outer"}),
    ("head", {"head", "loss"}),
    ("optimizer", {"optimizer"}),
    ("input", {"input"}),
    ("drop path", {"drop_path_factors"}),
)


def part_of(sources: Sequence[str]) -> str:
    """Paths of scopes, the operation's own first -> one of PARTS: of the first path that says it."""
    return next((part for part in map(_part, sources) if part != "other"), "other")


def _part(source: str) -> str:
    """ "jit(_fun)/shard_map/jvp(TNT)/TNT._scanned/while/body/closed_call/TNTBlock/vmap(inner)/norm1/mul" -> "inner"."""
    scopes = set(re.findall(r"[\w.\-]+", source))
    for part, names in _SCOPES:
        if scopes & names:
            return part
    if any(scope.endswith("._inner") for scope in scopes):  # TNTBlock's method around the inner block, kernels included
        return "inner"
    if "TNTBlock" in scopes or any(re.fullmatch(r"block_\d+", scope) for scope in scopes):
        return "projection"  # what is left in a block is the addition of the projected words to their sentences
    if "TNT._scanned" in scopes:
        return "scan"  # keeping each turn's activations and taking them out again
    if "TNT" in scopes:
        return "head"  # the final norm and the class token's way out
    return "other"
