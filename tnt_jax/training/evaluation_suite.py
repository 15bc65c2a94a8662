"""Finds the data sets of config.report_card, checks them against the model's classes, and reads them."""

import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tnt_jax.data.faulty import FaultyImages
from tnt_jax.data.settings import DataSettings
from tnt_jax.training.config import Config
from tnt_jax.training.input_pipeline import Batch, evaluation_batches
from tnt_jax.training.starting_point import label_map, relabelled

if TYPE_CHECKING:
    from tnt_jax.data.sources import Dataset

# A tfds name with an optional /config and :version, then an optional :split in tfds notation.
_ENTRY = re.compile(r"(?P<name>[^:\[\]\s]+(?::(?:\d+|\*)\.(?:\d+|\*)\.(?:\d+|\*))?)(?::(?P<split>\S.*))?")
_SPLITS = ("validation", "test")  # the first that exists, if an entry names none

# ImageNet-A (Hendrycks et al. 2021, arXiv 1907.07174) and ImageNet-R (Hendrycks et al. 2021, arXiv 2006.16241) have 200
# classes each; tfds labels both in 0..999, ImageNet's own order (classes sorted by WordNet number), so their
# num_classes does not show it. The numbers are from the authors' evaluation scripts.
_IMAGENET_A = """
6 11 13 15 17 22 23 27 30 37 39 42 47 50 57 70 71 76 79 89 90 94 96 97 99 105 107 108 110 113 124 125 130 132 143 144
150 151 207 234 235 254 277 283 287 291 295 298 301 306 307 308 309 310 311 313 314 315 317 319 323 324 326 327 330 334
335 336 347 361 363 372 378 386 397 400 401 402 404 407 411 416 417 420 425 428 430 437 438 445 456 457 461 462 470 472
483 486 488 492 496 514 516 528 530 539 542 543 549 552 557 561 562 569 572 573 575 579 589 606 607 609 614 626 627 640
641 642 643 658 668 677 682 684 687 701 704 719 736 746 749 752 758 763 765 768 773 774 776 779 780 786 792 797 802 803
804 813 815 820 823 831 833 835 839 845 847 850 859 862 870 879 880 888 890 897 900 907 913 924 932 933 934 937 943 945
947 951 954 956 957 959 971 972 980 981 984 986 987 988
"""
_IMAGENET_R = """
1 2 4 6 8 9 11 13 22 23 26 29 31 39 47 63 71 76 79 84 90 94 96 97 99 100 105 107 113 122 125 130 132 144 145 147 148
150 151 155 160 161 162 163 171 172 178 187 195 199 203 207 208 219 231 232 234 235 242 245 247 250 251 254 259 260 263
265 267 269 276 277 281 288 289 291 292 293 296 299 301 308 309 310 311 314 315 319 323 327 330 334 335 337 338 340 341
344 347 353 355 361 362 365 366 367 368 372 388 390 393 397 401 407 413 414 425 428 430 435 437 441 447 448 457 462 463
469 470 471 472 476 483 487 515 546 555 558 570 579 583 587 593 594 596 609 613 617 621 629 637 657 658 701 717 724 763
768 774 776 779 780 787 805 812 815 820 824 833 847 852 866 875 883 889 895 907 928 931 932 933 934 936 937 943 945 947
948 949 951 953 954 957 963 965 967 980 981 983 988
"""

# tfds name -> the labels that the set uses, ascending.
SUBSETS = {"imagenet_a": tuple(map(int, _IMAGENET_A.split())), "imagenet_r": tuple(map(int, _IMAGENET_R.split()))}


REAL = "imagenet2012_real"  # several labels per image, for single-label models: any of them is right


@dataclasses.dataclass(frozen=True)
class SuiteSet:
    """A data set, and how its labels map to the model's classes."""

    settings: DataSettings  # `name` and `eval_split` are the set's; the rest is the run's
    num_examples: int
    classes: np.ndarray  # float32 [K], 1 for the model's classes that the set has
    label_to_class: np.ndarray | None  # int32 [k], the model's class for each label of the set; None: the same

    def in_model_classes(self, batch: Batch) -> Batch:
        """A batch of the data package -> the same with the model's classes as labels.

        Raises ValueError for a label that is not one of the set's known classes.
        """
        batch = relabelled(batch, self.label_to_class)
        wrong = (self.classes[batch["label"]] == 0) & (batch["mask"] > 0)
        if wrong.any():
            raise ValueError(
                f"{self.settings.name}: example {batch['index'][wrong][0]} of {self.settings.eval_split} has the label "
                f"{batch['label'][wrong][0]}, which is not one of the {round(self.classes.sum())} classes of this set. "
                "Prepare it again with a newer tensorflow-datasets."
            )
        return batch


class EvaluationSuite:
    """The data sets of `config.report_card`. The constructor raises ValueError before it reads any image:

    one error for all entries that are malformed, unknown or not prepared (nothing is downloaded); one for all sets
    whose classes are not the model's, or that have several labels per image with a per-class loss. A set fits if all
    its class names are among the model's, in any order, or, if either has no names, if it has as many classes. The 200
    classes of ImageNet-A and ImageNet-R, which tfds labels as ImageNet, are known (SUBSETS).
    """

    def __init__(self, config: Config, num_classes: int | None, names: tuple[str, ...] | None = None):
        """num_classes: of the model's head; None takes that of the run's own data set, which need not be prepared.

        names: of the model's classes, as saved by its run; None takes those of the run's data set.
        """
        from tnt_jax.data import sources

        self._config = config
        self.faulty = FaultyImages()
        entries = _open_entries(config)
        if not (num_classes and names):
            own_classes, own_names = sources.classes(config.data)
            num_classes = num_classes or own_classes
            names = names or (own_names if own_classes == num_classes else None)
        self.num_classes: int = num_classes
        self.class_names = None  # labels are mapped set by set
        self.sets: list[SuiteSet] = []
        problems = []
        for settings, split in entries:
            try:
                self.sets.append(self._suite_set(settings, split, sources.open_dataset(settings), names))
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("config.report_card: " + "\n".join(problems))

    def batches(self, suite_set: SuiteSet) -> Iterator[Batch]:
        """This process's shard of a set: every example once, the last batch padded and masked."""
        config = self._config
        batches = evaluation_batches(suite_set.settings, config.model, config.eval_batch_size, faulty=self.faulty)
        return (suite_set.in_model_classes(batch) for batch in batches)

    def _suite_set(
        self, settings: DataSettings, split: str | None, source: "Dataset", names: tuple[str, ...] | None
    ) -> SuiteSet:
        split = split or next((name for name in _SPLITS if name in source.splits), None)
        if split is None:
            raise ValueError(f"{settings.name} has the splits {', '.join(source.splits)}: choose one, as NAME:SPLIT.")
        if source.several_labels and self._config.per_class and _base(settings.name) != REAL:
            raise ValueError(
                f"{settings.name} has several labels per image, and the suite would only measure the best class. "
                "For mean average precision, evaluate it without config.report_card, by --config.data.name, "
                "--config.data.directory and --config.data.eval_split."
            )
        mapping = _label_to_class(source, self.num_classes, names)
        known = SUBSETS.get(_base(settings.name))
        if mapping is not None:
            present = mapping
        elif known is not None and source.num_classes == 1000:
            present = np.array(known)
        else:
            present = np.arange(self.num_classes)
        classes = np.zeros(self.num_classes, np.float32)
        classes[present] = 1
        settings = dataclasses.replace(settings, eval_split=split)
        return SuiteSet(settings, source.num_examples(split), classes, mapping)


def _base(name: str) -> str:
    """A tfds name without /config and :version."""
    return re.split("[/:]", name)[0]


def _open_entries(config: Config) -> list[tuple[DataSettings, str | None]]:
    """Returns, for each entry of config.report_card, the settings to open it with and its split, None if not named."""
    from tnt_jax.data import sources

    found, problems, missing = [], [], []
    for entry in config.report_card:
        match = _ENTRY.fullmatch(entry.strip())
        if match is None:
            problems.append(f"{entry!r} is not NAME[/CONFIG][:VERSION][:SPLIT], such as 'imagenet_a:test'.")
            continue
        settings = dataclasses.replace(config.data, name=match["name"])
        try:
            if not sources.is_prepared(settings):
                missing.append(match["name"])
        except ValueError as error:
            problems.append(str(error))
        found.append((settings, match["split"]))
    if missing:
        where = config.data.directory or "tfds' default data_dir"
        directory = f" --directory={config.data.directory}" if config.data.directory else ""
        problems.append(
            f"not prepared in {where}: {', '.join(missing)}. Prepare each with 'python -m "
            f"tnt_jax.tools.prepare NAME{directory}' (sets of "
            "ImageNet's validation images need its archives in downloads/manual there), set --config.data.directory "
            "to their directory, or take them off the list."
        )
    if problems:
        raise ValueError("config.report_card: " + "\n".join(problems))
    return found


def _label_to_class(source: "Dataset", num_classes: int, names: tuple[str, ...] | None) -> np.ndarray | None:
    """Returns the model's class for each label of the set, int32 [k]; None if equal. Raises ValueError for a misfit."""
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
            f"{counts}, and which of them it has is not known, since {'the set' if names else 'the training set'} "
            f"has no class names. {fix}"
        )
    return mapping
