"""A run that images were made for by another decoder says so, and goes on."""

import json

import pytest

from tests.training.helpers import lines, tiny_config
from tnt_jax.training import loop


@pytest.fixture
def folder_config(tmp_path):
    from tests.data.test_folder import fill

    fill(tmp_path / "images", {"train/cat": 8, "train/dog": 8, "test/cat": 4, "test/dog": 4})
    return tiny_config(
        data__name="folder", data__directory=str(tmp_path / "images"), data__eval_split="test", steps=2,
        data__repeated_augmentation=1, data__randaugment="", log_every_steps=1, checkpoint_every_steps=1,
    )  # fmt: skip


def test_a_run_begun_before_says_that_the_remaining_images_are_made_by_another_decoder(
    folder_config, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "DECODER", "Pillow 9.9.9")
        loop.train_and_evaluate(folder_config, workdir)
    out = capsys.readouterr().out
    assert "16 images, test 8 images; 2 classes: cat 12, dog 12" in out and "Pillow" not in out
    saved = json.loads((workdir / "config.json").read_text())
    del saved["data"]["exif_orientation"], saved["data"]["worker_processes"]
    saved["data"]["reader_threads"] = 0
    (workdir / "config.json").write_text(json.dumps(saved))
    folder_config.steps = 3
    loop.train_and_evaluate(folder_config, workdir)
    out = capsys.readouterr().out
    assert out.count("Note: images were made by Pillow 9.9.9 then and are made by Pillow ") == 1
    assert [line["step"] for line in lines(workdir) if "train/loss" in line] == [1, 2, 3]
    folder_config.steps = 4
    loop.train_and_evaluate(folder_config, workdir)
    assert "images were made by" not in capsys.readouterr().out
