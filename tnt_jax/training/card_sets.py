"""The data sets of a report card: found, checked against the model's classes, and read, before and while it is made."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from tnt_jax.data.faulty import FaultyImages
from tnt_jax.data.settings import DataSettings
from tnt_jax.training.classes import label_map
from tnt_jax.training.config import Experiment
from tnt_jax.training.feed import Batch
from tnt_jax.training.subsets import SUBSETS

# A tfds name with /config and :version, where it has them, and a split in tfds notation.
_ENTRY = re.compile(r"(?P<name>[^:\[\]\s]+(?::(?:\d+|\*)\.(?:\d+|\*)\.(?:\d+|\*))?)(?::(?P<split>\S.*))?")
_SPLITS = ("validation", "test")  # where an entry names none


@dataclasses.dataclass(frozen=True)
class CardSet:
    """A data set and what its labels mean to the model."""

    settings: DataSettings  # `name` and `eval_split` are the set's; the rest is the run's
    num_examples: int
    classes: np.ndarray  # float32 [K], 1 for the model's classes that the set has
    label_to_class: np.ndarray | None  # int32 [k], the set's labels in the model's order; None: they are the same

    def in_model_classes(self, batch: Batch) -> Batch:
        """A batch of the data package -> the same with the model's classes as labels.

        Raises ValueError for a label outside the classes that the set is known to have.
        """
        batch = dict(batch)
        if self.label_to_class is not None:
            batch["label"] = self.label_to_class[batch["label"]]
            if "labels" in batch:
                labels = np.zeros((*batch["label"].shape, len(self.classes)), np.uint8)
                labels[..., self.label_to_class] = batch["labels"]
                batch["labels"] = labels
        wrong = (self.classes[batch["label"]] == 0) & (batch["mask"] > 0)
        if wrong.any():
            raise ValueError(
                f"{self.settings.name}: example {batch['index'][wrong][0]} of {self.settings.eval_split} has the label "
                f"{batch['label'][wrong][0]}, which is none of the {round(self.classes.sum())} classes of this set. "
                "Prepare it again with a newer tensorflow-datasets."
            )
        return batch


class CardFeed:
    """The sets of `config.report_card`. Making one raises ValueError before anything is read:

    one error for all entries that are ill-formed, unknown or not prepared (nothing is downloaded); one for all whose
    classes are not the model's. A set fits if all its classes are named as some of the model's, whatever their order,
    or, where one of them has no names, if it has as many. Of ImageNet-A and ImageNet-R, which tfds labels as ImageNet,
    the 200 classes are known (tnt_jax/training/subsets.py).
    """

    def __init__(self, experiment: Experiment, num_classes: int | None, names: tuple[str, ...] | None = None):
        """num_classes: of the model's head; None: those of the run's own data set, which need not be prepared.

        names: of the model's classes, as its run left them; None: those of its data set.
        """
        from tnt_jax.data import batches, sources

        self._experiment = experiment
        self.faulty = FaultyImages()
        self._batches = batches
        entries = _open_entries(experiment, sources)
        if not (num_classes and names):
            own_classes, own_names = sources.classes(experiment.data)
            num_classes = num_classes or own_classes
            names = names or (own_names if own_classes == num_classes else None)
        self.num_classes: int = num_classes
        self.sets: list[CardSet] = []
        problems = []
        for settings, split in entries:
            try:
                self.sets.append(self._card_set(settings, split, sources.open_dataset(settings), names))
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("config.report_card: " + "\n".join(problems))

    def batches(self, card_set: CardSet) -> Iterator[Batch]:
        """This process's share of a set: every example once, the last batch filled up and masked."""
        size = self._experiment.model.image_size
        batches = self._batches.eval_batches(
            card_set.settings,
            batch_size=self._experiment.eval_batch_size,
            image_size=(size, size),
            local_devices=jax.local_device_count(),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            faulty=self.faulty,
        )
        return (card_set.in_model_classes(batch) for batch in batches)

    def _card_set(
        self, settings: DataSettings, split: str | None, source: Any, names: tuple[str, ...] | None
    ) -> CardSet:
        split = split or next((name for name in _SPLITS if name in source.splits), None)
        if split is None:
            raise ValueError(f"{settings.name} has the splits {', '.join(source.splits)}: say which, as NAME:SPLIT.")
        settings = dataclasses.replace(settings, eval_split=split)
        num_examples = source.num_examples(settings.eval_split)
        mapping = _label_to_class(source, self.num_classes, names)
        known = SUBSETS.get(re.split("[/:]", settings.name)[0])
        if mapping is not None:
            present = mapping
        elif known is not None and source.num_classes == 1000:
            present = np.array(known)
        else:
            present = np.arange(self.num_classes)
        classes = np.zeros(self.num_classes, np.float32)
        classes[present] = 1
        return CardSet(settings, num_examples, classes, mapping)


def _open_entries(experiment: Experiment, sources: Any) -> list[tuple[DataSettings, str | None]]:
    """The entries of config.report_card -> settings to open each with, and the split where one is named."""
    found, problems, missing = [], [], []
    for entry in experiment.report_card:
        match = _ENTRY.fullmatch(entry.strip())
        if match is None:
            problems.append(f"{entry!r} is not NAME[/CONFIG][:VERSION][:SPLIT], such as 'imagenet_a:test'.")
            continue
        settings = dataclasses.replace(experiment.data, name=match["name"])
        try:
            if not sources.is_prepared(settings):
                missing.append(match["name"])
        except ValueError as error:
            problems.append(str(error))
        found.append((settings, match["split"]))
    if missing:
        place = experiment.data.directory or "tfds' default data_dir"
        directory = f" --directory={experiment.data.directory}" if experiment.data.directory else ""
        problems.append(
            f"not prepared in {place}: {', '.join(missing)}. Prepare each with 'python -m "
            f"tnt_jax.tools.prepare NAME{directory}' (sets of "
            "ImageNet's validation images need its archives in downloads/manual there), set --config.data.directory "
            "to where they lie, or take them off the list."
        )
    if problems:
        raise ValueError("config.report_card: " + "\n".join(problems))
    return found


def _label_to_class(source: Any, num_classes: int, names: tuple[str, ...] | None) -> np.ndarray | None:
    """The set's labels as the model's, int32 [k]; None where they are the same. ValueError where they do not fit."""
    counts = f"{source.name} has {source.num_classes} classes, the model's head {num_classes}"
    fix = "Take the set off the list, or evaluate a model that was trained on its classes."
    try:
        mapping = label_map(names, source.class_names, source.name)
    except ValueError as error:
        raise ValueError(f"{error} {fix}") from error
    if source.num_classes > num_classes:
        raise ValueError(f"{counts}. {fix}")
    if mapping is None and source.num_classes < num_classes:
        raise ValueError(
            f"{counts}, and which of them it has is not known, since {'the set' if names else 'what the run was on'} "
            f"has no names for its classes. {fix}"
        )
    return mapping
