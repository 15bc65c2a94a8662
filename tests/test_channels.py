"""Images other than square 8-bit RGB need only config changes: training, evaluation and every tool handle them."""

import json

import jax.export
import numpy as np
import pytest
from PIL import Image

from tests.training.helpers import tiny_config
from tnt_jax.tools import export, figures, predict, report
from tnt_jax.training import evaluate, loop, setup

NAMES = ("dark", "light")
PLAIN = {"data__randaugment": "", "data__color_jitter": 0.0}
KINDS = {  # kind: ((height, width, channels, bits), config changes)
    "grey": ((12, 10, 1, 16), {"data__pixel_bits": 16, "data__mean": (0.3,), "data__std": (0.2,), **PLAIN}),
    "alpha": (
        (10, 12, 4, 8),
        {"data__mean": (0.5, 0.5, 0.5, 0.9), "data__std": (0.5, 0.5, 0.5, 0.2), "data__on_device": True, **PLAIN},
    ),
    "wide": ((10, 16, 3, 8), {"model__image_size": (8, 12)}),
    "five": ((11, 9, 5, 8), {"data__mean": (0.4,), "data__std": (0.3,), **PLAIN}),
}


def write_folder(root, height, width, channels, bits):
    """Writes noise below a third of the range; in class "light" the last channel is brighter by half the range."""
    top = 2**bits - 1
    for split, count in {"train": 16, "test": 6}.items():
        for number in range(count):
            pixels = np.random.default_rng([number, count]).integers(0, top // 3, (height, width, channels))
            pixels[..., -1] += top // 2 * (number % 2)
            pixels = pixels.astype(f"uint{bits}")
            path = root / split / NAMES[number % 2] / f"{number}.{'npy' if channels == 5 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if channels == 5:
                np.save(path, pixels)
            else:
                Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_trained_on_evaluated_and_read_by_every_tool(kind, tmp_path, capsys):
    shape, changes = KINDS[kind]
    root, workdir = tmp_path / "images", tmp_path / "run"
    write_folder(root, *shape)
    config = tiny_config(
        data__name="folder",
        data__directory=str(root),
        data__eval_split="test",
        data__repeated_augmentation=1,
        **changes,
    )
    config.model.in_channels = shape[2]
    config.batch_size, config.eval_batch_size, config.steps = 8, 8, 2
    summary = loop.train(setup.prepare(config, workdir))
    assert summary["eval"]["count"] == 6 and np.isfinite(summary["eval"]["loss"])
    assert evaluate.evaluate(setup.prepare_evaluation(None, workdir))["eval"] == summary["eval"]

    capsys.readouterr()
    predict.main([f"--source={workdir}", str(root / "test"), "--format=json", "--weights=raw"])
    predictions = json.loads(capsys.readouterr().out)
    right = sum(each["predictions"][0]["class"] in each["image"].split("/") for each in predictions)
    assert len(predictions) == 6 and right / 6 == pytest.approx(summary["eval"]["accuracy"])

    export.main([f"--source={workdir}", f"--output={tmp_path / 'program'}"])
    program = jax.export.deserialize((tmp_path / "program/model.stablehlo").read_bytes())
    size = (8, 12) if kind == "wide" else (8, 8)
    assert program.in_avals[0].shape[1:] == (*size, shape[2]) and program.in_avals[0].dtype == f"uint{shape[3]}"

    report.main([f"--workdir={workdir}", f"--figures={'all' if kind == 'five' else 'none'}"])
    assert "data:image/png" in (workdir / "report.html").read_text()
    if kind == "grey":
        figures.main([f"--workdir={workdir}", "--num-images=3"])
        assert (workdir / "attention.png").is_file()
