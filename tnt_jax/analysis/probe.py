"""Quick measures of transfer on frozen features: a linear probe and nearest neighbours."""

from collections.abc import Sequence

import numpy as np

from tnt_jax.analysis.features import Features

INVERSE_PENALTIES = tuple(10.0**power for power in range(-4, 3))  # scikit-learn's C, from strong to weak
NEIGHBOURS = 20
TEMPERATURE = 0.07
HELD_OUT = 0.2  # fraction of the training split for the choice of the penalty
ITERATIONS = 1000  # of L-BFGS, at most


def linear_probe(
    train: Features, test: Features, *, seed: int = 0, class_names: Sequence[str] | None = None
) -> dict[str, float | bool]:
    """Features [n, D] of two splits -> accuracy (0..1, on `test`), inverse_penalty, held_out_accuracy, and two bools.

    Multinomial logistic regression (scikit-learn's, L-BFGS) on features standardised by the training split's mean and
    deviation. The penalty is chosen on a stratified fraction (HELD_OUT) of the training split, never on the test split,
    then the regression is fitted on the whole training split. Ties take the strongest penalty. `converged`: whether the
    regression converged; `at_end`: whether the penalty is at an end of the grid and better than its neighbour, so that
    a better one may lie beyond. class_names: for messages; without them classes are numbers.
    Raises ValueError if too few images can be held out, such as for a class with one image, which it names.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    def fitted(values: np.ndarray, labels: np.ndarray, inverse_penalty: float) -> LogisticRegression:
        return LogisticRegression(C=inverse_penalty, max_iter=ITERATIONS).fit(values, labels)

    _check_counts(train.labels, class_names)
    scaler = StandardScaler().fit(train.values)
    values = scaler.transform(train.values)
    parts = train_test_split(values, train.labels, test_size=HELD_OUT, random_state=seed, stratify=train.labels)
    fit_values, held_values, fit_labels, held_labels = parts
    grid = INVERSE_PENALTIES
    scores = {each: float(fitted(fit_values, fit_labels, each).score(held_values, held_labels)) for each in grid}
    best = max(scores, key=scores.get)
    beside = {grid[0]: grid[1], grid[-1]: grid[-2]}.get(best)
    model = fitted(values, train.labels, best)
    return {
        "accuracy": float(model.score(scaler.transform(test.values), test.labels)),
        "inverse_penalty": best,
        "held_out_accuracy": scores[best],
        "at_end": beside is not None and scores[best] > scores[beside],
        "converged": bool(np.max(model.n_iter_) < ITERATIONS),
    }


def _check_counts(labels: np.ndarray, class_names: Sequence[str] | None) -> None:
    """Raises ValueError if there is one class, a class has one image, or fewer images are held out than classes."""
    classes, counts = np.unique(labels, return_counts=True)
    names = [str(each) if class_names is None else class_names[each] for each in classes]
    if len(classes) < 2:
        raise ValueError(f"the training split has images of {names[0]} alone; a probe tells classes apart.")
    lone = [name for name, count in zip(names, counts, strict=True) if count < 2]
    if lone:
        more = f" and {len(lone) - 5} more" if len(lone) > 5 else ""
        raise ValueError(
            f"the training split has a single image of {', '.join(lone[:5])}{more}, of which none can be held out to "
            "choose the penalty by. Add images of it, or leave it out of the data set."
        )
    if np.ceil(HELD_OUT * len(labels)) < len(classes):
        raise ValueError(
            f"the training split has {len(labels)} images of {len(classes)} classes; {HELD_OUT:.0%} of them, which are "
            "held out to choose the penalty by, are less than one image per class. Take a split with more images."
        )


def nearest_neighbours(train: Features, test: Features) -> float:
    """Features [n, D] of two splits -> accuracy (0..1) of the weighted vote of the nearest training images.

    Similarity is the cosine; each of the NEIGHBOURS votes for its class with exp(cosine / TEMPERATURE) (Wu et al. 2018,
    arXiv 1805.01978, section 3.4; k = 20 and 0.07 as in DINO, Caron et al. 2021, arXiv 2104.14294).
    With fewer training images than neighbours, all of them vote.
    """
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = min(NEIGHBOURS, len(train.labels))
    model = KNeighborsClassifier(neighbours, metric="cosine", weights=lambda distance: np.exp(-distance / TEMPERATURE))
    return float(model.fit(train.values, train.labels).score(test.values, test.labels))
