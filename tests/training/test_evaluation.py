"""Every example once, all weights over the same batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.helpers import batch
from tnt_jax.training.evaluation import evaluate_weights


def eval_step(params, made):
    """Counts the examples whose label is the weights' favourite; replicated over 8 devices like the pmapped step."""
    label, real = np.asarray(made["label"]), np.asarray(made["mask"])
    sums = {
        "accuracy": (((label == params) * real).sum(), real.sum()),
        "loss": (2 * real.sum(), real.sum()),
    }
    return {name: tuple(jnp.full((8,), value) for value in pair) for name, pair in sums.items()}


def test_sums_over_ragged_batches():
    made = [batch(0, 16, devices=8), batch(1, 16, devices=8), batch(2, 16, 3, devices=8)]
    labels = np.concatenate([each["label"].ravel()[each["mask"].ravel() > 0] for each in made])
    results = evaluate_weights(eval_step, {"eval": 0, "eval_ema": 2}, iter(made), 2)
    assert results["eval"] == {"accuracy": pytest.approx((labels == 0).mean()), "loss": 2.0, "count": 35}
    assert results["eval_ema"]["accuracy"] == pytest.approx((labels == 2).mean())


def test_an_empty_split_is_an_error():
    with pytest.raises(ValueError, match="eval_split"):
        evaluate_weights(eval_step, {"eval": 0}, iter([]), 2)
