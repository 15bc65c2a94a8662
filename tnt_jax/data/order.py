"""Which examples a step sees, in which order and with which augmentation seeds. Index arithmetic only; reads no data.

Everything here is a pure function of (seed, step): resuming at any step costs one shuffle of the indices, and neither
threads nor the number of processes can change which samples a global batch holds. Draws come from a hash (splitmix64)
because the streams of NumPy's generators may change between releases, and an upgrade must not change a resumed run.
"""

import dataclasses
import functools

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# One number per purpose, so that two kinds of draws never share a hash.
_ORDER, _AUGMENTATION, _ARRANGEMENT, _REPLACEMENT = range(1, 5)


def mix64(*parts: int | np.ndarray) -> np.ndarray:
    """Integers (or arrays of them, broadcast together) -> uint64 hashes, uniform and stateless.

    Each part is taken modulo 2^64 and goes through one round of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is intended
        for part in parts:
            part = part.astype(np.uint64) if isinstance(part, np.ndarray) else np.uint64(part & 0xFFFFFFFFFFFFFFFF)
            state = state + _GOLDEN + part
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


@functools.lru_cache(maxsize=2)  # the current epoch and the next, which prefetching may have begun
def epoch_permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """(seed, epoch) -> int64 [num_examples], read-only: every index once, shuffled uniformly (0.1 s for 1.28 M)."""
    permutation = np.argsort(mix64(_ORDER, seed, epoch, np.arange(num_examples, dtype=np.int64)), kind="stable")
    permutation.setflags(write=False)  # it is cached
    return permutation


def augmentation_seeds(seed: int, epoch: int, index: np.ndarray, copy: np.ndarray) -> np.ndarray:
    """index [...], copy [...] -> int32 [..., 2], a seed for the draws of each copy of an example."""
    return mix64(_AUGMENTATION, seed, epoch, index, copy)[..., None].view(np.int32)


def replacement(seed: int, epoch: int, index: int, attempt: int, num_examples: int) -> int:
    """Returns the example that replaces the faulty example `index` in an epoch.

    attempt: 1, then 2, 3, ... if the replacement is faulty too. Drawn from all examples, so an example may occur twice
    in an epoch; the same in every process and session.
    """
    return int(mix64(_REPLACEMENT, seed, epoch, index, attempt) % np.uint64(num_examples))


@dataclasses.dataclass(frozen=True)
class LocalBatch:
    """What one process reads for one step: m different images with k copies each, and n samples among these m * k.

    Samples are in the order of the global batch, image by image. All k copies of an image are samples, unless it is at
    an end of the local batch and has its other copies in the neighbouring one.
    """

    epoch: int
    index: np.ndarray  # int64 [m], the images' numbers in the split
    seeds: np.ndarray  # int32 [m, k, 2], a seed for each copy of each image
    sample: np.ndarray  # int64 [n], image * k + copy of each sample

    @property
    def sample_index(self) -> np.ndarray:
        """int64 [n], the number of each sample's image in the split."""
        return self.index[self.sample // self.seeds.shape[1]]


@dataclasses.dataclass(frozen=True)
class TrainOrder:
    """The samples of every training step, for one of `process_count` processes.

    An epoch is a permutation p0, p1, p2, ... of the split. Repeated augmentation with k copies turns it into the
    sample sequence p0, p0, p0, p1, p1, p1, ... (k = 3; Hoffer et al. 2020, and DeiT's RASampler), cut into batches of
    `batch_size` samples. The epoch ends after num_examples // batch_size batches, as if there were no copies, and so
    sees about num_examples / k different images. If k does not divide the batch size, the last image of a batch has
    its remaining copies at the start of the next one: batch 1024, k = 3 and 1,281,167 examples give 1,251 steps,
    1,281,024 samples and exactly 427,008 different images, as in the recipe.

    Each process takes one contiguous part of each global batch, so the global batches, and the number of different
    images per epoch, do not depend on the number of processes. A process decodes each of its images once for all
    copies; only an image that spans two parts is decoded by two processes.
    """

    num_examples: int
    batch_size: int  # samples, over all processes; copies count
    copies: int  # k
    seed: int
    process_index: int
    process_count: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in num_examples samples."""
        return self.num_examples // self.batch_size

    @property
    def samples(self) -> int:
        """n, the samples of one process in one step."""
        return self.batch_size // self.process_count

    @functools.lru_cache(maxsize=4)  # noqa: B019 - called for every piece of a batch
    def local_batch(self, step: int) -> LocalBatch:
        """Returns the images, copies and seeds of this process at `step` (counted from 0 over all epochs)."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        first = step_of_epoch * self.batch_size + self.process_index * self.samples
        position = np.arange(first, first + self.samples, dtype=np.int64)
        image = np.arange(first // self.copies, position[-1] // self.copies + 1)
        index = epoch_permutation(self.seed, epoch, self.num_examples)[image]
        seeds = augmentation_seeds(self.seed, epoch, index[:, None], np.arange(self.copies))
        return LocalBatch(epoch, index, seeds, position - image[0] * self.copies)

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def arrangement(self, step: int) -> np.ndarray:
        """-> int64 [n]: the order in which the samples of the local batch go to this process's devices.

        Mixing pairs the global batch with its reverse: a single process pairs with its own part reversed, one of
        several with another's part. Image by image, or with any fixed spread of the copies, all copies of an image
        would be mixed with copies of one other image, or of itself. So with copies the local batch is shuffled, and
        pairs of copies of one image are then broken up by swapping one of the two with the next sample that resolves
        the pair. (If one image fills more than half of the batch, some pairs must stay.)
        """
        if self.copies == 1:
            return np.arange(self.samples)
        keys = mix64(_ARRANGEMENT, self.seed, step, self.process_index, np.arange(self.samples, dtype=np.int64))
        order = np.argsort(keys, kind="stable")
        image = self.local_batch(step).sample_index[order]
        partner = np.arange(self.samples)[::-1]
        for first in np.flatnonzero((image == image[partner]) & (partner > np.arange(self.samples))):
            second = np.arange(first + 1, first + self.samples) % self.samples
            solved = (image[second] != image[partner[first]]) & (image[first] != image[partner[second]])
            solved &= second != partner[first]
            if solved.any():
                other = second[np.argmax(solved)]
                order[[first, other]] = order[[other, first]]
                image[[first, other]] = image[[other, first]]
        return order
