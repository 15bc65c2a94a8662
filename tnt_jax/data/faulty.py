"""Images that cannot be decoded: counted and named once; other examples take their places in training.

Faulty is what stays so however often it is read: a damaged or truncated file, no image at all, or one that is too large
(augment.decode). A file that is missing or cannot be read is no faulty image but an error: it may be there the next
time, and a batch has to be the same whenever it is made.
"""

import threading

from absl import logging

_NAMED = 20  # of the images met, in one message


class FaultyImages:
    """The different faulty images that one process has met since it started, by their place in words.

    Safe from several threads. The sets of training and evaluation are counted apart.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, dict[str, str]] = {"train": {}, "eval": {}}

    def add(self, purpose: str, where: str, reason: str) -> int:
        """Notes an image (once; a new one is logged) -> how many there are for `purpose`, "train" or "eval"."""
        with self._lock:
            found = self._found[purpose]
            if where not in found:
                found[where] = reason
                logging.warning("Faulty image %d (%s), left out: %s: %s", len(found), purpose, where, reason)
            return len(found)

    def count(self, purpose: str) -> int:
        """Different images met for "train" or "eval"."""
        with self._lock:
            return len(self._found[purpose])

    def names(self, purpose: str) -> list[str]:
        """Place and reason of each, in the order in which they were met."""
        with self._lock:
            return [f"{where}: {reason}" for where, reason in self._found[purpose].items()]

    def check_limit(self, limit: int) -> None:
        """Raises ValueError that names the images of training where there are more than `limit`."""
        names = self.names("train")
        if len(names) > limit:
            listed = "\n  ".join(names[-_NAMED:])
            raise ValueError(
                f"data.max_faulty_images={limit}, but {len(names)} images of the training split cannot be used. Copy "
                "or prepare the data set again, remove them, or raise --config.data.max_faulty_images (a run resumes "
                f"from its last checkpoint). The last ones:\n  {listed}"
            )
