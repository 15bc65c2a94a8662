"""Accuracy and loss over the whole evaluation split, every example once."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tnt_jax.training import metrics
from tnt_jax.training.feed import Batch, prefetch

Result = dict[str, float]


def evaluate_weights(
    eval_step: Callable[[Any, Batch], metrics.Sums],
    weights: Mapping[str, Any],
    batches: Iterator[Batch],
    prefetch_batches: int,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Result] | None:
    """Replicated weights by name, batches [local devices, ...] -> by name accuracy, accuracy_top5, loss and count.

    None where `interrupted`, asked before every batch, says so. The batches are read once for all weights. Sums are
    kept in float64 on the host, one batch behind the devices.
    """
    totals: dict[str, dict[str, list[float]]] = {name: {} for name in weights}

    def add(results: dict[str, metrics.Sums]) -> None:
        for name, sums in metrics.to_host(results).items():
            for metric, (total, weight) in sums.items():
                counter = totals[name].setdefault(metric, [0.0, 0.0])
                counter[0] += float(total)
                counter[1] += float(weight)

    waiting = None
    for batch in prefetch(batches, prefetch_batches):
        if interrupted():
            return None
        results = {name: eval_step(params, batch) for name, params in weights.items()}
        if waiting is not None:
            add(waiting)
        waiting = results
    if waiting is None:
        raise ValueError("The evaluation split is empty. Check config.data.eval_split.")
    add(waiting)
    return {name: metrics.averages(sums) | {"count": round(sums["accuracy"][1])} for name, sums in totals.items()}
