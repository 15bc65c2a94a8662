"""The report page: it shows the run's results in one file, fetches nothing from a server, and escapes all text."""

import base64
import html.parser
import json

import numpy as np
import pytest

from tests.training.helpers import random_variables, tiny_config
from tnt_jax.analysis import page
from tnt_jax.analysis.mistakes import Evaluated, EvaluatedSeveral, Mistake, MistakeOfSeveral
from tnt_jax.data.settings import EvalImages
from tnt_jax.models.variants import create_model
from tnt_jax.tools import report
from tnt_jax.tools.trained import Trained, check_run
from tnt_jax.training.config import as_dict, check_config
from tnt_jax.workdir import read_summary

HOSTILE = '<script>alert("1")</script>'
VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """Collects tags, addresses and text; checks that open tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text, self._open = [], [], "", []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data if self._open[-1:] != ["style"] else ""


@pytest.fixture
def workdir(tmp_path):
    """Writes the workdir of a digits run, without its checkpoint."""
    settings = check_config(
        tiny_config(
            data__name="digits",
            data__directory=str(tmp_path / "sets"),
            data__eval_split="test[:90]",
            model__num_classes=10,
        )
    )
    place = tmp_path / "my <b>run"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(as_dict(settings)))
    lines = [{"step": s, "train/loss": 2.0 / s, "train/images_per_second": 100.0 * s} for s in (1, 2, 3)]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"accuracy": 0.625, "accuracy_top5": 0.875, "loss": 1.25, "count": 90}
    summary = {"parameters": 1234567, "steps": 3, "seconds": 62.0, "images_per_second": 300.0, "best": "eval_ema"}
    summary |= {"eval": result | {"accuracy": 0.5}, "eval_ema": result, "versions": {"device": "cpu", "jax": "0"}}
    (place / "summary.json").write_text(json.dumps(summary))
    return place


def render(workdir, confusion, names, **changes):
    mistakes = [Mistake(7, np.full((4, 4, 3), 9, np.uint8), 1, 0, 0.001, 0.9)]
    arguments = {
        "figures": {},
        "image": "eval:0",
        "weights": "averaged weights of step 3",
        "summary": read_summary(workdir),
    }
    return page.render(
        workdir=workdir,
        config=check_run(workdir),
        class_names=names,
        **arguments | {"evaluated": Evaluated(confusion, mistakes)} | changes,
    )


def test_what_the_run_left_is_on_the_page_and_nothing_is_fetched(workdir):
    card = {"source": HOSTILE, "step": None, "calibration_bins": 15, "results": []}
    row = {"set": "imagenet_a", "split": "test", "weights": "raw", "accuracy": 0.1234, "accuracy_top5": 0.5}
    card["results"] = [row | {"negative_log_likelihood": None, "expected_calibration_error": 0.25, "count": 7500}]
    published = dict.fromkeys(card["results"][0]) | {"set": "imagenet_a", "split": "test", "weights": "published"}
    card["results"].append(card["results"][0] | {"set": "another"})
    card["published"] = [published | {"accuracy": 0.4321, "accuracy_top5": 0.6789}]
    (workdir / "report_card.json").write_text(json.dumps(card))
    text = render(workdir, np.array([[4, 0], [1, 3]]), [HOSTILE, "ant"], figures={"tsne": b"picture"}, image=HOSTILE)
    shown = Page(text)
    assert "script" not in shown.tags and "b" in shown.tags  # <b> around the page's own numbers
    assert shown.text.count(HOSTILE) >= 5 and "my <b>run" in shown.text  # as text
    for words in ("62.5%", "averaged weights, 90 images; raw: 50.0%", "1,234,567", "1 min 2 s", "12.34%", "7,500"):
        assert words in shown.text, words
    assert shown.text.index("12.34%") < shown.text.index("43.21%") < shown.text.index("another")
    assert ", 8 × 8 pixels" in shown.text
    assert "is right on 87.50% of the 8 images" in shown.text and "200" in shown.text  # the median speed
    inside = [address for address in shown.addresses if address.startswith("data:image/png;base64,")]
    assert all(address in inside or address.startswith("#") for address in shown.addresses)
    assert "url(" not in text and "@import" not in text and "http" not in text.replace("http-equiv", "")
    assert base64.b64encode(b"picture").decode() in text and len(inside) == 4 + 1 + 1  # curves, figure, mistake


@pytest.mark.parametrize("count", [25, 26, 300])
def test_many_classes_are_a_picture_and_few_are_numbers(workdir, count):
    confusion = np.full((count, count), 1) + 7 * np.eye(count, dtype=int)
    shown = Page(render(workdir, confusion, [f"class number {i}" for i in range(count)]))
    assert ("Numbers are images" in shown.text) == (count <= 25)
    assert len(shown.text) < 60_000


def test_no_name_is_a_formula_or_an_escape_sequence(workdir):
    folder = workdir.rename(workdir.parent / "$x_{1$ \x1b[31m\udcff")
    names = [r"$\frac{1$", "a\nb", "\x1b[31m"]
    for count in (3, 27):  # the matrix in numbers, and as a figure
        text = render(folder, np.diag(range(1, count + 1))[::-1], (names * 9)[:count], image="\x1b.png")
        assert not {"\x1b", "\udcff"} & set(text)
        assert r"$\frac{1$" in text and r"a\nb" in text and r"\x1b[31m" in text and r"\udcff" in text


def test_a_perfect_or_unfinished_run_says_so(workdir):
    text = render(workdir, np.diag([3, 4]), ["a", "b"], summary=None)
    assert "has not ended" in text and "No image was mistaken" in text and "Every class is always right" in text


def test_several_labels_have_a_table_of_precisions(workdir):
    result = {"mean_average_precision": 0.5, "subset_accuracy": 0.25, "accuracy": 0.75, "loss": 0.5, "count": 9}
    summary = read_summary(workdir) | {"eval": result, "eval_ema": None, "best": "eval"}
    worst = [MistakeOfSeveral(3, np.zeros((4, 4, 3), np.uint8), (0, 2), (), 1.5)]
    evaluated = EvaluatedSeveral([0.8, None, 0.2], [5, 0, 4], 9, 0.25, worst)
    shown = Page(render(workdir, None, ["ant", HOSTILE, "bee"], summary=summary, evaluated=evaluated))
    assert "script" not in shown.tags and "Confusion" not in shown.text
    for words in ("50.0%", "mean average precision of 50.00%", "25.0%", "subset accuracy", "ant, bee", "no class"):
        assert words in shown.text, words
    assert shown.text.index("20.0%") < shown.text.index("80.0%") < shown.text.index("–")


def test_the_program_evaluates_and_writes(workdir, monkeypatch, capsys):
    """From digits to the page, whose confusion matrix has all 90 images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(workdir.parent / "cache"))
    config = check_run(workdir)
    model = create_model(**config.model.arguments())
    asked = []

    def open_trained(source, weights, changes):
        asked.append((source, weights))
        images, names = EvalImages((0.5,) * 3, (0.5,) * 3), tuple("0123456789")
        return Trained(source, "tnt", model, random_variables(model), images, names, "raw weights of step 3", config)

    monkeypatch.setattr(report, "open_trained", open_trained)
    report.main([f"--workdir={workdir}", "--figures=none", "--mistakes=3"])
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{workdir / 'report.html'}: ")
    assert asked == [(str(workdir), "best")]
    text = (workdir / "report.html").read_text()
    assert (
        "The newest checkpoint (raw weights of step 3)" in text
        and " of the 90 images of" in text
        and text.count('alt="Example ') == 3
    )
    assert not list(workdir.glob("*.tmp"))
    monkeypatch.setattr(report, "batches_of_run", lambda *arguments: pytest.fail("evaluated before the figures' names"))
    with pytest.raises(SystemExit):
        report.main([f"--workdir={workdir}", "--figures=feature_map"])
    assert "feature_map" in capsys.readouterr().err


def test_what_cannot_work_ends_with_one_message(tmp_path, workdir, capsys):
    for folder, message in ((tmp_path / "none", "it is not the workdir of a run"), (workdir, "checkpoints")):
        with pytest.raises(SystemExit) as stop:
            report.main([f"--workdir={folder}"])
        assert stop.value.code == 2 and message in capsys.readouterr().err
