import json

import matplotlib.image
import matplotlib.pyplot as plt
import pytest

from tnt_jax.analysis.curves import PANELS, draw_curves, draw_panel, read_metrics

LINES = [
    {"step": 10, "train/loss": 2.0, "train/accuracy": 0.2, "train/learning_rate": 1e-3, "train/images_per_second": 90},
    {"step": 10, "eval/loss": 1.9, "eval/accuracy": 0.25, "eval_ema/loss": 2.2, "eval_ema/accuracy": 0.1},
    {"step": 20, "train/loss": None, "train/accuracy": 0.4, "train/learning_rate": 5e-4, "train/images_per_second": 95},
]


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path


def test_metrics_are_read_by_name_without_what_is_not_a_number(workdir):
    series = read_metrics(workdir)
    assert series["train/accuracy"] == ([10, 20], [0.2, 0.4])
    assert series["train/loss"] == ([10], [2.0])


def test_the_figure_is_the_same_file_each_time(workdir):
    first = draw_curves(workdir, workdir / "a" / "curves.png").read_bytes()
    assert draw_curves(workdir, workdir / "b" / "curves.png").read_bytes() == first
    figure = matplotlib.image.imread(workdir / "a" / "curves.png")
    assert figure.shape[0] > 400 and figure[..., :3].std() > 0.01  # not blank


def test_a_missing_or_torn_file_is_named(workdir):
    with pytest.raises(FileNotFoundError, match="metrics.jsonl does not exist"):
        read_metrics(workdir / "elsewhere")
    (workdir / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not a JSON object"):
        read_metrics(workdir)
    (workdir / "metrics.jsonl").write_bytes(b'{"step": 1, "\xff": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: not a JSON object"):
        read_metrics(workdir)


def test_of_several_labels_the_mean_average_precision_is_drawn_in_place_of_the_accuracy():
    panel = next(panel for panel in PANELS if panel[0] == "accuracy")
    series = {name: ([1, 2], [0.1, 0.2]) for name in panel[1]}
    figure, axes = plt.subplots()
    draw_panel(axes, series, *panel)
    drawn = [line.get_label() for line in axes.lines]
    plt.close(figure)
    assert drawn == ["training", "test, mAP", "test, mAP, averaged weights"]
