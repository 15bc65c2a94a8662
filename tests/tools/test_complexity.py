import pytest

import tnt_jax
from tnt_jax.models.complexity import count_parts, frozen_outer_tokens, multiply_adds
from tnt_jax.models.variants import update
from tnt_jax.tools import complexity

SMALL = {"image_size": 32, "patch_size": 8, "outer_dim": 24, "inner_dim": 8, "outer_num_heads": 3, "depth": 2}


def test_the_papers_tables_within_rounding():
    for table, row, name, overrides, parameters, flops in complexity.PUBLISHED:
        model = tnt_jax.create_model(name, **overrides)
        parts = count_parts(model)
        assert round(sum(part.multiply_adds for part in parts) / 1e9, 1) == flops, (table, row)
        if parameters is not None:
            counted = sum(part.parameters for part in parts) + frozen_outer_tokens(model)
            assert round(counted / 1e6, 1) == parameters, (table, row)


def test_report_shows_parts_totals_and_ratio(monkeypatch, capsys):
    monkeypatch.setattr(complexity, "PUBLISHED", complexity.PUBLISHED[1:2])
    complexity.main(["--model=tnt_s_patch16_224", "--image-size=224", "--no-xla"])
    text = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines() if line}
    assert rows["head"][1:3] == ["385,000", "385,000"]
    assert rows["projection"][1:5] == ["1,787,904", "1,769,472", "346,816,512", "346,816,512"]
    assert "65,428,680 trainable + 196 x 640 = 125,440 frozen" in text and "65,554,120, the paper's 65.6 M" in text
    assert rows["total"][1] == "23,768,584" and rows["total"][-1] == "100.0%"
    assert "1.141 times the multiply-adds, 1.087 times the parameters" in text
    assert rows["Table 1"] == "Table 1 TNT-S 23,768,584 23.84 M 23.8 M 5.23 G 5.15 G 5.2 G".split()
    assert "XLA" not in text


def test_another_image_size_and_xla(monkeypatch, capsys):
    monkeypatch.setattr(complexity, "PUBLISHED", complexity.PUBLISHED[1:2])
    small = tnt_jax.create_model("tnt_s_patch16_224", **SMALL)
    monkeypatch.setattr(complexity, "create_model", lambda name, **overrides: small)
    complexity.main(["--image-size=128x160"])
    text = capsys.readouterr().out
    assert "One image of 128 x 160 pixels" in text and "XLA counts" in text
    resized = update(small, image_size=(128, 160))
    counted, exact = complexity.xla_multiply_adds(resized), multiply_adds(resized)
    assert f"{exact / 1e9:.3f} G multiply-adds of products" in text and f"XLA counts {counted / 1e9:.3f} G" in text
    assert exact < counted < 1.25 * exact  # norms and biases weigh more in a small model


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--model=tnt_s_patch16_225", "did you mean 'tnt_s_patch16_224'"),
        ("--image-size=225", "image_size=225 is not a multiple of patch_size=16; use 224 or 240"),
        ("--image-size=2x3x4", "--image-size"),
        ("--image-size=wide", "--image-size"),
    ],
)
def test_bad_arguments_end_with_the_fix(argument, message, capsys):
    with pytest.raises(SystemExit) as stop:
        complexity.main([argument])
    assert stop.value.code == 2 and message in capsys.readouterr().err
