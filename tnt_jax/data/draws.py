"""Random numbers for augmentation: NumPy arrays as a pure function of the seeds.

They come from order.mix64, like the order of the examples, so no library upgrade changes a resumed run.
"""

import numpy as np

from tnt_jax.data.order import mix64

CROP, CROP_CHOICES, POLICY, POLICY_NORMAL, POLICY_WEIGHTED, JITTER, THREE = range(1, 8)  # one number per purpose
BICUBIC_BELOW = {"random": 0.5, "bicubic": 1.0, "bilinear": 0.0}  # limit of a uniform draw, by data.train_interpolation


def uniform(seeds: np.ndarray, purpose: int, *shape: int) -> np.ndarray:
    """seeds integers [..., 2] (order.augmentation_seeds) -> float64 [..., *shape], uniform in 0 <= x < 1.

    purpose: a number that keeps different kinds of draws for one seed independent.
    """
    seeds = np.asarray(seeds)[..., None]
    positions = np.arange(int(np.prod(shape)), dtype=np.int64)
    bits = mix64(seeds[..., 0, :], seeds[..., 1, :], purpose, positions)
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(*bits.shape[:-1], *shape)


def normal(seeds: np.ndarray, purpose: int, *shape: int) -> np.ndarray:
    """Like `uniform`, from the standard normal distribution (Box and Muller, 1958)."""
    first, second = np.moveaxis(uniform(seeds, purpose, 2, *shape), -1 - len(shape), 0)
    return np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)
