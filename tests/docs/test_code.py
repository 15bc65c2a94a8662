"""Follows README and docs from top to bottom: Python blocks run, and commands run here or in a listed test."""

import contextlib
import functools
import importlib
import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import main as program
import tnt_jax
from configs import digits
from tests.docs import pages
from tests.docs.pages import ROOT
from tests.pretrained import published
from tests.training.helpers import random_variables
from tnt_jax.models.fast import fused
from tnt_jax.models.variants import create_model
from tnt_jax.pretrained import save_pretrained
from tnt_jax.training import runtime
from tnt_jax.training.config import check_config

# Prefix of a command that is not run here -> the test that runs the same program on small data. The longest counts.
TESTED = {
    "main.py --config=configs/digits.py": "test_main.py::test_training_and_evaluating_from_the_command_line",
    "main.py --config=configs/digits.py --workdir=DIR --config.seed=0": "training/test_distillation.py::trained",
    "main.py --config=configs/folder.py --config.data.directory=scans": (
        "test_channels.py::test_a_folder_is_trained_on_evaluated_and_read_by_every_tool"
    ),
    "main.py --config=configs/folder.py --config.data.directory=photos --workdir=runs/photos --config.loss=sigmoid": (
        "test_several_labels.py::trained"
    ),
    "main.py --config=configs/folder.py --config.data.directory=photos --workdir=runs/taught": (
        "training/test_distillation.py::test_a_taught_run_resumes_and_its_checkpoints_hold_no_teacher"
    ),
    "main.py --config=configs/finetune.py:cifar10": (
        "training/test_freezing.py::test_a_run_with_frozen_parameters_resumes_to_the_same_bits"
    ),
    "main.py --config=configs/imagenet_tnt_s.py": "data/test_imagenet.py::test_the_recipe_trains_and_evaluates_on_it",
    "main.py --config=configs/imagenet_tnt_s.py --config.data.directory=DATA --workdir=runs/check": (
        "training/test_evaluation_suite.py::test_a_suite_of_real_builders"
    ),
    "main.py --mode=evaluate --workdir=runs/imagenet_tnt_s": (
        "training/test_evaluation_suite.py::test_every_set_that_the_readme_names_is_evaluated"
    ),
    "tools.prepare": "tools/test_prepare.py::test_a_set_is_prepared_once_and_described",
    "tools.predict --help": "test_wheel.py::test_every_program_is_there",
    "tools.probe": "tools/test_probe.py::test_digits_from_a_file_of_weights",
    "tools.figures --models=runs/deit,runs/tnt": "tools/test_figures.py::test_chosen_figures_side_by_side",
    "tools.figures --models=DEIT,TNT": "tools/test_figures.py::test_all_of_a_deit_leaves_out_the_words",
    "tools.figures --models=deit_small_patch16_224": (
        "tools/test_figures.py::test_weights_of_a_file_are_its_own_and_normalised_as_published"
    ),
    "tools.figures --workdir": "tools/test_figures.py::test_a_runs_own_figures_and_its_accuracy",
    "tools.report --workdir=runs/digits": "tools/test_report.py::test_the_program_evaluates_and_writes",
    "tools.complexity": "tools/test_complexity.py::test_another_image_size_and_xla",
    "tests.fuzz.images": "fuzz/test_fuzz.py::test_damaged_images_are_decoded_or_refused",
}
# Prefix of a command that no test can run as written -> why.
NOT_RUN = {
    "make": "fetches packages; the commands of make train and make test are tested",
    "pip install": "fetches packages; test_wheel.py installs this one",
    "pytest": "starts these tests",
    "main.py --config=configs/folder.py --config.data.directory=CIFAR": "trains for minutes on CIFAR-10 as JPEG files",
    "tools.tpu_report": "needs libtpu and minutes; tools/test_tpu_report.py tests all but the compiler",
    "benchmarks.tpu": "needs libtpu and minutes",
    "benchmarks.speed": "needs PyTorch and timm; benchmarks/test_speed.py has stand-ins for them",
    "benchmarks.gpu": "needs a GPU; benchmarks/test_gpu.py has stand-ins",
}
# Flags that make the other commands quick.
SMALL = {
    "main": "--config.model.image_size=16 --config.model.patch_size=8 --config.model.word_size=4 "
    "--config.model.inner_dim=2 --config.model.outer_dim=4 --config.model.inner_num_heads=1 --config.model.depth=1 "
    "--config.model.outer_num_heads=1 --config.model.dtype=float32 --config.batch_size=8 --config.steps=2 "
    "--config.eval_batch_size=8 "
    "--config.mixing.mixup_alpha=0 --config.mixing.cutmix_alpha=0 --config.mixing.erase_probability=0",
    "tnt_jax.tools.report": "--figures=none",
}
# Small stand-ins for the published models, with ten classes.
SIZES = {"image_size": 32, "patch_size": 8, "word_size": 2, "depth": 1, "num_classes": 10, "inner_dim": 2}
SIZES |= {"outer_dim": 8, "inner_num_heads": 1, "outer_num_heads": 2}
# Workdir entries in docs/checkpoints.md that evaluations and tools write, and those that only some runs have.
OF_OTHERS = {"evaluation.json", "report_card.json", "report_card.csv", "curves.png", "attention.png"}
OF_OTHERS |= {"report.html", "probe.json"}
OF_SOME_RUNS = {"damaged_checkpoints", "damaged.*", "nonfinite_STEP.json", "profile"}
TRACED = re.compile(r"model\.apply\(.*# \[2, 1000\]")  # a Python block with the whole TNT-S
TRAINED = "python main.py --config=configs/folder.py --config.data.directory=photos --workdir=runs/photos"


def listed(command):
    """Returns the entry of TESTED or NOT_RUN for a command; None if it is run here."""
    command = re.sub(r"^(\.venv/bin/)?(python (-m )?)?(tnt_jax\.)?", "", command)
    return max((start for start in TESTED | NOT_RUN if command.startswith(start)), key=len, default=None)


def run(command):
    """Runs a command of this repository in this process -> its output."""
    words = shlex.split(command)[1:]
    name, arguments = ("main", words[1:]) if words[0] == "main.py" else (words[1], words[2:])
    arguments += shlex.split(SMALL.get(name, ""))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        for each in ("exit_on_signals", "set_up"):  # this process keeps its signal handlers and devices
            patch.setattr(runtime, each, lambda *arguments: None)
        patch.setattr(runtime, "leave", sys.exit)
        patch.setattr(sys, "argv", [name, *arguments])
        program.main() if name == "main" else importlib.import_module(name).main()
    return printed.getvalue()


def execute(text, page, names):
    """Runs a Python block and compares its output with its comments "# -> ..."."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(text, str(page), "exec"), names)
    assert printed.getvalue().splitlines() == re.findall(r"# -> (.*)", text)


def trace(text, page, names):
    """Like `execute` for slow sizes: only traces the block, and compares shapes with comments such as [2, 1000]."""
    found = []

    def block():
        exec(compile(text, str(page), "exec"), names)
        for line in text.splitlines():
            code, _, comment = line.partition("#")
            if shape := re.search(r"\[(\d[\d, ]*)\]", comment):
                value = eval(code.partition(" = ")[0], names)
                found.append((code, list(value.shape), [int(each) for each in shape[1].split(",")]))

    jax.eval_shape(block)
    assert len(found) >= 3
    for code, shape, promised in found:
        assert shape == promised, code


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Sets up a reader's folder: configs, the images of docs/data.md, and small weights under published names."""
    root, rng = tmp_path_factory.mktemp("reader"), np.random.default_rng(0)
    (root / "configs").symlink_to(ROOT / "configs")
    (root / "runs").mkdir()
    (root / "runs/digits").symlink_to("photos")  # for the tools, a run like any other
    images = [f"photos/train/cats/{number}.jpg" for number in range(1, 8)]
    images += [f"photos/train/dogs/{number}.jpg" for number in range(1, 7)] + ["photos/train/dogs/young/7.png"]
    images += ["photos/test/cats/9.webp", "photos/test/dogs/2.tif", "photos/test/birds/1.jpg", "holiday.jpg"]
    images += [f"photos/test/dogs/{number}.jpg" for number in range(3, 7)]
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(root / image)
    for name in ("1.heic", "2.heic", ".hidden.jpg"):
        (root / "photos/train/cats" / name).touch()

    def small(name, **changes):
        return create_model(name, **SIZES | changes)

    model = small("tnt_s_patch16_224")
    save_pretrained(root / "weights.safetensors", model, random_variables(model, SIZES["image_size"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setattr("tnt_jax.pretrained.load.create_model", small)
        patch.setattr("tnt_jax.pretrained.sources.why_unreachable", lambda: "")
        patch.setattr("huggingface_hub.hf_hub_download", lambda *arguments, **options: "weights.safetensors")
        yield small


@pytest.fixture(scope="module")
def trained(place):
    """Runs README's command for a folder, in runs/photos -> its output."""
    return run(TRAINED)


@pytest.mark.parametrize("page", pages.FOLLOWED, ids=lambda page: page.stem)
def test_code_runs(page, place, request, monkeypatch):
    names = {}
    for code in pages.code_of(page):
        command = code.text if code.language == "bash" else ""
        if command == TRAINED or not listed(command) and re.search("runs/|photos_model", code.text):
            request.getfixturevalue("trained")
        if command and command != TRAINED and not listed(command):
            run(command)
        elif code.language == "python" and "torch" not in code.text:
            (trace if TRACED.search(code.text) else execute)(code.text, page, names)
            if page == pages.README:  # for the blocks after the first, which is traced
                monkeypatch.setattr(tnt_jax, "create_model", place)


def test_the_tables_have_tests_that_exist_and_commands_that_the_pages_have():
    commands = [code.text for page in pages.FOLLOWED for code in pages.code_of(page) if code.language == "bash"]
    assert {listed(command) for command in commands} - {None} == {*TESTED, *NOT_RUN}
    for test in TESTED.values():
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), test


def test_what_a_folder_prints_is_what_data_md_says(trained):
    (promised,) = [
        code.text for code in pages.code_of(ROOT / "docs/data.md") if code.language == "text" and "Note:" in code.text
    ]
    lines = [line for line in trained.splitlines() if line.startswith(("folder ", "Note: classes", "Note: not read"))]
    found = re.sub("folder .*/photos:", "folder /home/me/photos:", "\n".join(lines))
    assert re.sub(r"[\d,]*\d", "N", found) == re.sub(r"[\d,]*\d", "N", promised.strip())


def test_a_workdir_has_what_checkpoints_md_lists(trained):
    layout = pages.code_of(ROOT / "docs/checkpoints.md")[0].text
    names = {line.split()[0].partition("/")[0] for line in layout.splitlines()[1:]}
    assert names >= OF_OTHERS | OF_SOME_RUNS
    assert all(list(Path("runs/photos").glob(name)) for name in names - OF_OTHERS - OF_SOME_RUNS)
    assert not [path for path in Path("runs/photos").iterdir() if not any(map(path.match, names))]
    keys = re.findall(r'"([\w/]+)":', layout)
    lines = [json.loads(line) for line in Path("runs/photos/metrics.jsonl").read_text().splitlines()]
    assert any(keys[:3] == list(line)[:3] and keys[3] in line for line in lines) and len(keys) == 4


def test_timms_model_goes_to_onnx(tmp_path, monkeypatch):
    """Runs if these packages are installed, which `make install` does not do; with a small TNT of timm's."""
    timm, _, _, onnxruntime = map(pytest.importorskip, ("timm", "onnx", "onnxscript", "onnxruntime"))
    (code,) = [code for code in pages.code_of(ROOT / "docs/tools.md") if "torch.onnx" in code.text]
    sizes = {"img_size": 32, "patch_size": 8, "first_stride": 2, "embed_dim": 48, "inner_dim": 12, "depth": 3}
    sizes |= {"num_heads_inner": 2, "num_heads_outer": 3}
    monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, **sizes))
    monkeypatch.chdir(tmp_path)
    shutil.copy(published.weights_file("tnt_tiny"), "FILE.safetensors")
    exec(code.text.replace("224, 224)", "32, 32)"), {})
    expected = published.outputs("tnt_tiny")
    program = onnxruntime.InferenceSession("tnt.onnx")
    (logits,) = program.run(None, {"images": np.ascontiguousarray(expected["image"].transpose(0, 3, 1, 2))})
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)


def test_the_change_of_model_md_applies_to_the_definition():
    (diff,) = [code.text for code in pages.code_of(ROOT / "docs/model.md") if code.language == "diff"]
    before = [line[1:] for line in diff.splitlines() if not line.startswith("+")]
    source = (ROOT / "tnt_jax/models/tnt.py").read_text().splitlines()
    assert all(line in source for line in before)


def test_the_kernel_refuses_that_change_in_the_words_of_model_md():
    config = create_model(**check_config(digits.get_config()).model.arguments()).config  # the page trains this one
    assert fused.obstacle(config, "TPU v5 lite") is None  # nothing else prevents the kernel
    shapes = fused.expected_parameters(config) | {"gate": (config.inner_dim,)}
    message = fused.mismatch(config, {name: np.empty(shape) for name, shape in shapes.items()})
    assert f"is 'xla' here: {message}, and the kernel" in " ".join((ROOT / "docs/model.md").read_text().split())
