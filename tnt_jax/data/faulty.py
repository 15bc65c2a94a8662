"""Images that cannot be decoded: each is logged once and counted; in training another example takes its place.

Changes that decoding makes to other images (channels, bits) are logged once too.

An image is faulty if reading it again cannot help: a damaged or truncated file, not an image at all, or one that is too
large (decoding.decode). A file that is missing or cannot be read is an error instead: it may be there the next time,
and a batch must be the same whenever it is made.
"""

from absl import logging

from tnt_jax.data.decoding import LOST, Changes
from tnt_jax.names import printable

_LISTED = 20  # images listed in one message


class FaultyImages:
    """The different faulty images that one process has met since it started, separate for "train" and "eval"."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, str]] = {"train": {}, "eval": {}}  # purpose -> image description -> reason
        self._changed: set[tuple[str, str]] = set()  # purpose and change that are already logged

    def add(self, purpose: str, image: str, reason: str) -> None:
        """Notes an image, and logs it if it is new."""
        found = self._found[purpose]
        if image not in found:
            found[image] = printable(reason)
            logging.warning("Faulty image %d (%s), left out: %s: %s", len(found), purpose, image, found[image])

    def log_changes(self, purpose: str, changes: Changes) -> None:
        """Logs each kind of change to a batch's images once, as a warning if information is lost."""
        for kind, (count, first) in sorted(changes.found.items()):
            if (purpose, kind) not in self._changed:
                self._changed.add((purpose, kind))
                where = f"{count:,} of {changes.images:,} images (the first such {purpose} batch)"
                level = logging.WARNING if kind in LOST else logging.INFO
                logging.log(level, "Note: %s %s; the first is %s", where, kind, printable(first))

    def count(self, purpose: str) -> int:
        """Number of different images met for "train" or "eval"."""
        return len(self._found[purpose])

    def names(self, purpose: str) -> list[str]:
        """Returns "image: reason" for each, in the order in which they were met."""
        return [f"{image}: {reason}" for image, reason in self._found[purpose].items()]

    def check_limit(self, limit: int) -> None:
        """Raises ValueError, with the last training images, if there are more than `limit`."""
        if self.count("train") > limit:
            listed = "\n  ".join(self.names("train")[-_LISTED:])
            raise ValueError(
                f"data.max_faulty_images={limit}, but {self.count('train')} images of the training split cannot be "
                "used. Copy or prepare the data set again, remove them, or raise --config.data.max_faulty_images (a "
                f"run resumes from its last checkpoint). The last ones:\n  {listed}"
            )
