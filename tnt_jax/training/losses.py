"""Training losses: logits and soft targets of a batch -> a loss and a weight per image.

docs/extending.md shows how to add one. Evaluations also measure `binary_cross_entropy`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tnt_jax.training.config import Config

# logits [b, K], targets [b, K], config, class weights [K] or None -> losses [b] in nats, each image's loss times its
# weight, and the weights [b]. The loss of a batch is the sum of these losses over the sum of the weights.
Loss = Callable[[jax.Array, jax.Array, Config, jax.Array | None], tuple[jax.Array, jax.Array]]


def multi_hot(labels: jax.Array, num_classes: int) -> jax.Array:
    """labels [b] int, or [b, k] (1 for each of an image's labels, k <= K) -> [b, K]."""
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, num_classes)
    return jnp.pad(labels, ((0, 0), (0, num_classes - labels.shape[1])))


def smooth_labels(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """labels [b] int, or multi-hot [b, k] (k <= K) -> [b, K] float32.

    One label: smoothing / K everywhere, 1 - smoothing + smoothing / K at the label. Multi-hot: each class moves towards
    one half, to smoothing / 2 or 1 - smoothing / 2. Both as in timm.
    """
    off = smoothing / (2 if labels.ndim == 2 else num_classes)
    return multi_hot(labels, num_classes).astype(jnp.float32) * (1 - smoothing) + off


def softmax_cross_entropy(
    logits: jax.Array, targets: jax.Array, config: Config, class_weights: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy with one label per image: rows of targets sum to 1.

    An image's weight is that of its label; a mixed image's is the mean by its labels' shares before smoothing. With
    unmixed images and no smoothing this is PyTorch's CrossEntropyLoss(weight=).
    """
    losses = -(targets * jax.nn.log_softmax(logits)).sum(-1)
    if class_weights is None:
        return losses, jnp.ones_like(losses)
    shares = (targets - config.label_smoothing / targets.shape[-1]) / (1 - config.label_smoothing)
    weights = (shares * class_weights).sum(-1)
    return losses * weights, weights


def sigmoid_cross_entropy(
    logits: jax.Array, targets: jax.Array, config: Config, class_weights: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Binary cross-entropy of each class, averaged or (bce_sum_classes) summed over classes; targets in 0..1.

    With bce_threshold, targets above it count as 1 and others as 0. The class weights multiply the loss of present
    classes but not of absent ones: PyTorch's BCEWithLogitsLoss(pos_weight=). Every image has weight 1.
    """
    if config.bce_threshold is not None:
        targets = (targets > config.bce_threshold).astype(targets.dtype)
    present = targets if class_weights is None else targets * class_weights
    losses = binary_cross_entropy(logits, present, 1 - targets, config.bce_sum_classes)
    return losses, jnp.ones_like(losses)


def binary_cross_entropy(logits: jax.Array, present: jax.Array, absent: jax.Array, sum_classes: bool) -> jax.Array:
    """logits [b, K], weights [b, K] of each class as present and as absent -> losses [b] in nats."""
    losses = -(present * jax.nn.log_sigmoid(logits) + absent * jax.nn.log_sigmoid(-logits))
    return losses.sum(-1) if sum_classes else losses.mean(-1)


def distillation_losses(logits: jax.Array, teacher: jax.Array, config: Config) -> jax.Array:
    """logits [b, K] of student and teacher -> losses [b] in nats.

    "soft": T^2 KL(teacher / T || student / T) (Hinton et al., arXiv 1503.02531), per image; DeiT's code also divides it
    by K. "hard": the cross-entropy with the teacher's top class (DeiT, arXiv 2012.12877, equation 3).
    """
    settings = config.distillation
    if settings.kind == "hard":
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), teacher.argmax(-1)[:, None], axis=-1)[:, 0]
    temperature = settings.temperature
    wanted, found = (jax.nn.log_softmax(each / temperature) for each in (teacher, logits))
    return temperature**2 * (jnp.exp(wanted) * (wanted - found)).sum(-1)


LOSSES: dict[str, Loss] = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}  # by config.loss


@jax.named_scope("loss")
def batch_loss(
    logits: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    config: Config,
    class_weights: jax.Array | None = None,
    teacher_logits: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """logits, targets [b, K], mask [b], class_weights [K] -> (sum of the masked losses, sum of their weights).

    With teacher_logits [b, K], distillation_losses have a share of config.distillation.weight in the losses.
    """
    logits = logits.astype(jnp.float32)
    losses, weights = LOSSES[config.loss](logits, targets, config, class_weights)
    if teacher_logits is not None:
        share = config.distillation.weight
        losses = (1 - share) * losses + share * weights * distillation_losses(logits, teacher_logits, config)
    # where, not just a product: 0 times a padded example's infinite loss would be NaN.
    return jnp.where(mask > 0, losses * mask, 0.0).sum(), (weights * mask).sum()
