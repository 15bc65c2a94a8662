"""The program: from weights and a config to accuracies in a file."""

import json
from pathlib import Path

import pytest

from configs import finetune
from tests.training.helpers import checked_config, random_variables, tiny_config
from tnt_jax.models.variants import create_model, update
from tnt_jax.pretrained import save_pretrained
from tnt_jax.tools import probe
from tnt_jax.tools.command_line import run_config
from tnt_jax.training.config import check_config


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = create_model(**checked_config(model__num_classes=3).model.arguments())
    save_pretrained(path, model, random_variables(model))
    return path


def digits(directory, **changes):
    return tiny_config(
        data__name="digits",
        data__directory=str(directory),
        data__train_split="train[:300]",
        data__eval_split="test[:90]",
        data__eval_crop_fraction=1.0,
        **changes,
    )


def test_digits_from_a_file_of_weights(tmp_path, weights, monkeypatch, capsys):
    """Frozen random features, matched to their labels, classify digits better than chance, whatever the head's size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    output = tmp_path / "out" / "probe.json"
    monkeypatch.setattr(probe.command_line, "read_config", lambda options, source: digits(tmp_path))
    probe.main([f"--source={weights}", "--block=1", "--features=mean", f"--output={output}"])
    found = json.loads(output.read_text())
    assert (found["data"], found["block"], found["features"]) == ("digits", 1, "mean")
    assert found["weights"] == "weights of the file"
    assert (found["train_count"], found["eval_count"]) == (300, 90)
    linear, nearest = found["linear_probe"]["accuracy"], found["nearest_neighbours"]["accuracy"]
    assert 0.15 < linear < 1 and 0.15 < nearest < 1
    printed = capsys.readouterr().out
    assert f"{100 * linear:.2f}%" in printed and f"20 nearest neighbours: {100 * nearest:.2f}%" in printed


def test_the_config_of_the_example_is_that_of_the_published_weights():
    """docs/tools.md and the program's docstring give this config for a TNT-S weights file."""
    command = "--config=configs/finetune.py:cifar10"
    assert command in probe.__doc__ and command in Path("docs/tools.md").read_text()
    config = finetune.get_config("cifar10")
    config.model.image_size = 224
    model = create_model(**check_config(config).model.arguments())
    assert update(model, drop_path_rate=0.0, num_classes=0) == create_model(
        "tnt_s_patch16_224", num_classes=0, dtype=model.dtype
    )


def test_a_workdir_knows_its_model_and_data(tmp_path, weights, monkeypatch):
    """The model and the config come from the run; a checkpoint's folder leads to the same ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = checked_config(model__num_classes=3)
    model = create_model(**settings.model.arguments())
    (tmp_path / "run/checkpoints/7").mkdir(parents=True)
    config = digits(tmp_path, model__num_classes=3)
    (tmp_path / "run/config.json").write_text(json.dumps(config.to_dict()))
    asked = []

    def fit(found, model):
        asked.append((found, model.num_classes, model.image_size))
        raise ValueError("far enough")

    monkeypatch.setattr("tnt_jax.tools.probe.read_source", lambda source, weights: (model, (source, weights)))
    monkeypatch.setattr("tnt_jax.tools.probe.fit", fit)
    for source, weights in ((tmp_path / "run", "best"), (tmp_path / "run/checkpoints/7", "raw")):
        with pytest.raises(ValueError, match="far enough"):
            probe.probe(str(source), run_config(tmp_path / "run"), weights=weights)
    assert asked == [((str(tmp_path / "run"), "best"), 0, 8), ((str(tmp_path / "run/checkpoints/7"), "raw"), 0, 8)]


def test_weights_without_a_config_are_refused(weights):
    with pytest.raises(ValueError, match="--config is missing: .*tiny.safetensors is not a workdir"):
        probe.probe(str(weights), None)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "the following arguments are required: --source"),
        (["--source=FILE"], "--output is missing"),
        (["--source=FILE", "--output=x"], "--config is missing"),
    ],
)
def test_the_program_says_in_one_line_what_is_missing(weights, monkeypatch, tmp_path, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        probe.main([flag.replace("FILE", str(weights)) for flag in flags])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith(f"probe: {words}") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_other_channels_than_the_configs_is_refused(tmp_path, monkeypatch):
    grey = create_model(
        **checked_config(
            model__num_classes=3, model__in_channels=1, data__mean=(0.5,), data__std=(0.5,)
        ).model.arguments()
    )
    monkeypatch.setattr("tnt_jax.tools.probe.read_source", lambda source, weights: (grey, None))
    with pytest.raises(
        ValueError, match="sees images of 1 channels, and config.model.in_channels is 3. Give --config.mod"
    ):
        probe.probe(str(tmp_path), digits(tmp_path))


def test_a_models_name_before_the_weights_is_the_model(monkeypatch, tmp_path):
    """As in the other tools; data and image size come from the config."""
    asked = []

    def fit(found, model):
        asked.append((found, model.outer_dim, model.depth, model.image_size))
        raise ValueError("far enough")

    monkeypatch.setattr("tnt_jax.tools.probe.read_source", lambda source, weights: (None, source))
    monkeypatch.setattr("tnt_jax.tools.probe.fit", fit)
    with pytest.raises(ValueError, match="far enough"):
        probe.probe("tnt_s_patch16_224:weights.safetensors", digits(tmp_path, model__image_size=32))
    assert asked == [("weights.safetensors", 384, 12, 32)]
