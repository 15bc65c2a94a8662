"""Measures the cost of returning to a position in the data: python -m benchmarks.resume_position

Times the first batch of a new run and of one that resumes in the middle of epoch 151, with as many records as ImageNet
(synthetic images of 8 pixels, so that only the position is measured).
"""

import time

from configs import default
from tnt_jax.data import batches, order
from tnt_jax.data.settings import DataSettings

IMAGENET = 1_281_167
BATCH = 1024
STEP = 188_650  # of the 387,810 of 310 epochs


def first_batch(start_step: int) -> float:
    """Returns the seconds from a cold start to the batch of this step."""
    order.epoch_permutation.cache_clear()
    values = default.get_config().data.to_dict() | {"name": "synthetic", "synthetic_examples": IMAGENET}
    settings = DataSettings(**values)
    started = time.perf_counter()
    next(
        batches.train_batches(
            settings, batch_size=BATCH, image_size=(8, 8), seed=0, start_step=start_step, local_devices=1
        )
    )
    return time.perf_counter() - started


def main() -> None:
    """Prints the figures."""
    first_batch(0)  # imports and tables
    print(f"first batch of {IMAGENET:,} records from step 0: {min(first_batch(0) for _ in range(3)):.2f} s")
    print(f"from step {STEP:,}: {min(first_batch(STEP) for _ in range(3)):.2f} s")


if __name__ == "__main__":
    main()
