"""The loss, as a sum and a weight, so that ragged batches and unequal shares of a batch average exactly."""

import jax
import jax.numpy as jnp


def smooth_labels(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """labels [b] int -> [b, K] float32: smoothing / K everywhere, 1 - smoothing + smoothing / K at the label."""
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return one_hot * (1 - smoothing) + smoothing / num_classes


@jax.named_scope("loss")
def softmax_cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """logits [b, K], targets [b, K] (rows sum to 1), mask [b] -> (sum of masked losses in nats, sum of the mask)."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    losses = -(targets * log_probabilities).sum(-1)
    # where, and not a product: a padded example's infinite loss must not turn 0 * inf into NaN.
    return jnp.where(mask > 0, losses * mask, 0.0).sum(), mask.sum()
