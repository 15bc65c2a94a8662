"""Metrics as (sum, weight) pairs: exact over ragged batches, devices and processes. Ten examples count ten."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Sums = dict[str, tuple[Any, Any]]  # name -> (sum, weight), both float32 []


def accuracy(logits: jax.Array, labels: jax.Array, mask: jax.Array, top: int = 1) -> tuple[jax.Array, jax.Array]:
    """logits [b, K], labels [b] int, mask [b] -> (masked number of labels among the `top` largest logits, mask's sum).

    With fewer classes than `top`, all of them are looked at. Equal logits rank by class number.
    """
    top = min(top, logits.shape[-1])
    _, best = jax.lax.top_k(logits, top)
    correct = (best == labels[:, None]).any(-1)
    return (correct * mask).sum(), mask.sum()


def zeros(names: Iterable[str]) -> Sums:
    """A running sum of nothing, for each name."""
    return {name: (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)) for name in names}


def to_host(tree: Any) -> Any:
    """A replicated tree [devices, ...] -> numpy arrays of this process's first device, in one transfer.

    Reads one shard instead of indexing, which would start a computation and, over several processes, fail.
    """
    shards = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, tree)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], jax.device_get(shards))


def averages(sums: Mapping[str, tuple[Any, Any]], nothing: float | None = None) -> dict[str, float]:
    """(sum, weight) pairs -> means. Where nothing was summed the mean is `nothing`, or, without it, a ValueError."""
    for name, (_, weight) in sums.items():
        if float(weight) == 0 and nothing is None:
            raise ValueError(f"There is no mean of {name}: no example was counted.")
    return {name: float(s) / float(weight) if float(weight) else nothing for name, (s, weight) in sums.items()}
