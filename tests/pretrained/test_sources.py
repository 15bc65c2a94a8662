import argparse
import json
import pickle
import struct
import sys
import types
from pathlib import Path

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.numpy import save_file

from tnt_jax.pretrained import load_pretrained, sources

ARRAYS = {"patch_pos": np.arange(6, dtype=np.float32).reshape(1, 2, 3), "norm.weight": np.ones(3, np.float32)}


class FakeTensor:
    """The part of torch.Tensor that the reader uses."""

    def __init__(self, array):
        self.array = array

    @property
    def dtype(self):
        return self.array.dtype

    def is_complex(self):
        return np.iscomplexobj(self.array)

    def detach(self):
        return self

    def float(self):
        return FakeTensor(self.array.astype(np.float32))

    def numpy(self):
        return self.array


@pytest.fixture
def fake_torch(monkeypatch):
    """Replaces torch; files are plain pickles. `calls` records the arguments of safe_globals and torch.load."""
    calls = []

    def load(path, **options):
        calls.append(options)
        return pickle.loads(Path(path).read_bytes())

    class Allowed:
        def __init__(self, classes):
            calls.append(classes)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

    torch = types.SimpleNamespace(
        load=load, Tensor=FakeTensor, calls=calls, serialization=types.SimpleNamespace(safe_globals=Allowed)
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    return torch


def tensors(offset=0.0):
    return {name: FakeTensor(array + np.float32(offset)) for name, array in ARRAYS.items()}


def write(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


def check_arrays(weights, offset=0.0):
    assert set(weights.arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert weights.arrays[name].dtype == np.float32
        np.testing.assert_array_equal(weights.arrays[name], array + np.float32(offset))


def test_safetensors_of_any_float_type_come_as_float32(tmp_path):
    for kind in (np.float32, np.float16, np.float64, ml_dtypes.bfloat16):
        path = tmp_path / f"{np.dtype(kind).name}.safetensors"
        save_file({name: array.astype(kind) for name, array in ARRAYS.items()}, path)
        weights = sources.read_weights(path)
        check_arrays(weights)
        assert (weights.scheme, weights.grid) == ("timm", None)


def test_a_noted_grid_is_read(tmp_path):
    save_file(ARRAYS, tmp_path / "w.safetensors", {"sentence_grid": "2x7"})
    assert sources.read_weights(str(tmp_path / "w.safetensors")).grid == (2, 7)


def test_wrappers_prefixes_go(tmp_path):
    save_file({f"_orig_mod.module.{name}": array for name, array in ARRAYS.items()}, tmp_path / "w.safetensors")
    check_arrays(sources.read_weights(tmp_path / "w.safetensors"))
    save_file(ARRAYS | {"module.norm.weight": ARRAYS["norm.weight"] + 1}, tmp_path / "twice.safetensors")
    with pytest.raises(ValueError, match="norm.weight twice"):
        sources.read_weights(tmp_path / "twice.safetensors")


@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.", "module.model.", "student.backbone."])
def test_a_prefix_that_all_names_share_goes(tmp_path, prefix):
    save_file({prefix + name: array for name, array in ARRAYS.items()}, tmp_path / "w.safetensors")
    check_arrays(sources.read_weights(tmp_path / "w.safetensors"))
    others = {prefix + name: array for name, array in ARRAYS.items()} | {"loss.weight": ARRAYS["norm.weight"]}
    save_file(others, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match="holds neither timm's"):
        sources.read_weights(tmp_path / "more.safetensors")


@pytest.mark.parametrize("ending", sources.TORCH_SUFFIXES)
def test_pytorch_files_are_read_without_running_their_code(fake_torch, tmp_path, ending):
    check_arrays(sources.read_weights(write(tmp_path / f"w{ending}", tensors())))
    assert fake_torch.calls == [[argparse.Namespace], {"map_location": "cpu", "weights_only": True}]


@pytest.mark.parametrize(
    "keys, choice, taken",
    [
        (["model", "state_dict", "model_ema", "state_dict_ema"], "best", "state_dict_ema"),
        (["model", "state_dict", "model_ema"], "best", "model_ema"),
        (["model", "state_dict", "model_ema"], "averaged", "model_ema"),
        (["model", "state_dict", "model_ema", "state_dict_ema"], "raw", "state_dict"),
        (["model"], "best", "model"),
        (["model"], "raw", "model"),
        (["net", "model_state_dict"], "best", "model_state_dict"),
        (["net"], "best", "net"),
    ],
)
def test_a_checkpoint_is_unwrapped_in_timms_order(fake_torch, tmp_path, keys, choice, taken):
    content = {key: tensors(offset) for offset, key in enumerate(keys)} | {"epoch": 3, "optimizer": {}}
    weights = sources.read_weights(write(tmp_path / "w.pth.tar", content), choice)
    check_arrays(weights, keys.index(taken))
    kind = "averaged" if "ema" in taken else "raw"
    assert repr(taken) in weights.source and weights.label == f"{kind} weights"


def test_averaged_weights_that_are_not_there_are_an_error(fake_torch, tmp_path):
    with pytest.raises(ValueError, match=r"a\.pth has no averaged weights \(state_dict_ema, model_ema\).*holds net"):
        sources.read_weights(write(tmp_path / "a.pth", {"net": tensors()}), "averaged")
    with pytest.raises(ValueError, match=r"b\.pth holds one set of weights"):
        sources.read_weights(write(tmp_path / "b.pth", tensors()), "averaged")
    with pytest.raises(ValueError, match="weights='ema': must be one of best, raw, averaged"):
        sources.read_weights(tmp_path / "b.pth", "ema")


def test_pytorch_files_without_weights_say_what_they_hold(fake_torch, tmp_path):
    with pytest.raises(ValueError, match="holds also epoch, state_dict_ema; its averaged weights were not requested"):
        sources.read_weights(write(tmp_path / "a.pth", {"epoch": 3, "state_dict_ema": tensors()}), "raw")
    with pytest.raises(ValueError, match="holds a list, not a dictionary"):
        sources.read_weights(write(tmp_path / "b.pth", [1]))
    with pytest.raises(ValueError, match="holds nothing"):
        sources.read_weights(write(tmp_path / "c.pth", {"model": {}}))


@pytest.mark.parametrize(
    "error, message",
    [  # messages of PyTorch 2.13
        (
            pickle.UnpicklingError(
                "Weights only load failed. This file can still be loaded, to do so you have two options, ...\n"
                "\tWeightsUnpickler error: Unsupported global: GLOBAL pathlib.PosixPath was not an allowed ..."
            ),
            r"w\.pth holds more than arrays \(pathlib\.PosixPath\).*\nIf you trust it, .* only its state_dict\.$",
        ),
        (
            RuntimeError("Cannot use ``weights_only=True`` with TorchScript archives passed to ``torch.load``. In ..."),
            r"w\.pth holds more than arrays \(TorchScript code\)",
        ),
        (
            pickle.UnpicklingError(
                "Weights only load failed. In PyTorch 2.6, we ...\nPlease file an issue with the following so that we "
                "can ...: WeightsUnpickler error: \n\nUnsupported operand 118\n\nCheck the documentation ..."
            ),
            r"w\.pth cannot be read as PyTorch weights \(UnpicklingError: Unsupported operand 118\); it is damaged",
        ),
        (EOFError(), r"w\.pth cannot be read as PyTorch weights \(EOFError\)"),
        (
            RuntimeError("Cannot use ``weights_only=True`` with files saved in the legacy .tar format. In PyTorch ..."),
            r"w\.pth cannot be read as PyTorch weights \(RuntimeError\); it is damaged, incomplete or another kind",
        ),
        (KeyError("storages"), r"w\.pth cannot be read as PyTorch weights \(KeyError: 'storages'\)"),
        (AssertionError("x\ny"), r"w\.pth cannot be read as PyTorch weights \(AssertionError: x\)"),
    ],
)
def test_what_pytorch_will_not_read_is_one_error_in_our_words(fake_torch, tmp_path, error, message):
    def refuse(path, **options):
        raise error

    fake_torch.load = refuse
    with pytest.raises(ValueError, match=message):
        sources.read_weights(write(tmp_path / "w.pth", {}))


def test_what_float32_cannot_hold_is_an_error_that_names_file_and_array(fake_torch, tmp_path):
    content = tensors() | {"norm.weight": FakeTensor(np.ones(3, np.complex64))}
    with pytest.raises(ValueError, match=r"w\.pth: norm\.weight .* of complex64, but weights are real"):
        sources.read_weights(write(tmp_path / "w.pth", content))
    with pytest.raises(ValueError, match=r"v\.pth should hold only arrays but holds also 1"):
        sources.read_weights(write(tmp_path / "v.pth", tensors() | {1: FakeTensor(np.ones(3))}))
    save_file({"patch_pos": ARRAYS["patch_pos"], "norm.weight": np.ones(3, np.complex64)}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"c\.safetensors has arrays of a type .*: norm\.weight \(C64\)"):
        sources.read_weights(tmp_path / "c.safetensors")
    for kind in ("F8_E4M3", "F4"):
        path = tmp_path / f"{kind}.safetensors"
        count = 6 if kind == "F4" else 3
        header = json.dumps({"norm.weight": {"dtype": kind, "shape": [count], "data_offsets": [0, 3]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(3))
        with pytest.raises(ValueError, match=rf"{kind}\.safetensors has arrays of a type .*: norm\.weight \({kind}\)"):
            sources.read_weights(path)


@pytest.mark.parametrize("value", [np.float32("nan"), np.float32("inf"), np.float64(1e300)])
def test_values_that_are_not_finite_are_an_error_that_names_file_and_array(fake_torch, tmp_path, value):
    """Large float64 values do not silently become infinite."""
    scale = np.full(ARRAYS["norm.weight"].shape, value)
    with pytest.raises(ValueError, match=r"w\.safetensors holds values that are not finite, .* in norm\.weight;"):
        save_file(ARRAYS | {"norm.weight": scale}, tmp_path / "w.safetensors")
        sources.read_weights(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.pth, its 'net' holds values that are not finite"):
        sources.read_weights(write(tmp_path / "w.pth", {"net": tensors() | {"norm.weight": FakeTensor(scale)}}))


@pytest.mark.parametrize("source", ["", "~nosuchuser/w.pth", "x" * 5000, "a\0b.pth", "https://hub/w.pth"])
def test_a_name_that_no_file_has_is_not_there(source):
    with pytest.raises(FileNotFoundError, match=r": there is no such file; give"):
        load_pretrained(source, None)


@pytest.mark.parametrize("noted", [{"sentence_grid": "4x"}, {"sentence_grid": "0x4"}, {"tnt_jax_sizes": "[1"}])
def test_damaged_notes_name_the_file(tmp_path, noted):
    save_file(ARRAYS, tmp_path / "w.safetensors", noted)
    with pytest.raises(ValueError, match=rf"w\.safetensors: its metadata {next(iter(noted))}.*damaged"):
        sources.read_weights(tmp_path / "w.safetensors")


def test_a_pytorch_file_without_pytorch_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` fail
    with pytest.raises(ValueError, match="pip install torch"):
        sources.read_weights(write(tmp_path / "w.pth", {}))


def test_a_real_pytorch_file(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional extra")
    content = {"model": {f"module.{name}": torch.from_numpy(array.copy()) for name, array in ARRAYS.items()}}
    torch.save(content | {"args": argparse.Namespace(lr=1.0), "epoch": 3}, tmp_path / "w.pth.tar")
    check_arrays(sources.read_weights(tmp_path / "w.pth.tar"))
    torch.save({"model": content, "code": print}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code\.pth holds more than arrays"):
        sources.read_weights(tmp_path / "code.pth")


def test_bad_files_name_path_and_cause(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors: there is no such file"):
        sources.read_weights(tmp_path / "nowhere.safetensors")
    (tmp_path / "w.h5").touch()
    with pytest.raises(ValueError, match=r"w\.h5 is not a weights file; known endings are \.safetensors.*\.ckpt"):
        sources.read_weights(tmp_path / "w.h5")
    (tmp_path / "half.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"half\.safetensors cannot be read as safetensors"):
        sources.read_weights(tmp_path / "half.safetensors")
    save_file({"layer1.0.conv1.weight": np.zeros(1, np.float32)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"neither timm's nor .* it holds layer1\.0\.conv1\.weight"):
        sources.read_weights(tmp_path / "resnet.safetensors")


def hub(monkeypatch, files, error=None, network=True, cached=False):
    """Replaces the hub with one of only `files` (name -> path) -> the list that records its requests."""
    asked = []

    def hf_hub_download(repository, file, revision=None, local_files_only=False):
        asked.append((repository, file, revision))
        if local_files_only and not cached:
            raise LocalEntryNotFoundError("not in the cache")
        if file not in files:
            raise error or EntryNotFoundError("no such entry")
        return str(files[file])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(sources, "why_unreachable", lambda: "" if network else "Name or service not known")
    return asked


def test_the_hub_is_asked_for_safetensors_first(monkeypatch, fake_torch, tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    write(tmp_path / "pytorch_model.bin", tensors(1))
    files = {path.name: path for path in tmp_path.iterdir()}
    asked = hub(monkeypatch, files)
    check_arrays(sources.read_weights("hf-hub:timm/tnt_s_patch16_224.in1k@main"))
    assert asked == [("timm/tnt_s_patch16_224.in1k", "model.safetensors", "main")]
    asked = hub(monkeypatch, {"pytorch_model.bin": files["pytorch_model.bin"]})
    check_arrays(sources.read_weights("hf-hub:timm/old"), 1)
    assert [file for _, file, _ in asked] == ["model.safetensors", "pytorch_model.bin"]


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("timm/none", EntryNotFoundError("no"), "neither model.safetensors nor pytorch_model.bin"),
        ("timm/none", OSError("401 Client Error"), "cannot be fetched from the hub: 401 Client Error"),
        ("timm/none", OSError("404\n\nmore\nlines"), "cannot be fetched from the hub: 404$"),
        *((name, None, "give hf-hub:OWNER/NAME") for name in ("tnt_s", "a/b/c", "a b/c", "timm/", "timm/x@")),
    ],
)
def test_hub_errors_name_the_source_and_the_fix(monkeypatch, name, error, message):
    hub(monkeypatch, {}, error)
    with pytest.raises(ValueError, match=f"hf-hub:{name}.*{message}"):
        sources.read_weights(f"hf-hub:{name}")


def test_without_network_the_cache_is_used_and_the_library_never_retries(monkeypatch, tmp_path, caplog):
    asked = hub(monkeypatch, {}, network=False)
    with pytest.raises(
        ValueError, match=r"not in the cache and the hub cannot be reached \(Name or .*\); check the net"
    ):
        sources.read_weights("hf-hub:timm/none")
    assert len(asked) == 2
    save_file(ARRAYS, tmp_path / "model.safetensors")
    hub(monkeypatch, {"model.safetensors": tmp_path / "model.safetensors"}, network=False, cached=True)
    check_arrays(sources.read_weights("hf-hub:timm/some"))
    assert "Using hf-hub:timm/some from the cache" in caplog.text


def test_whether_the_hub_answers_is_one_question(monkeypatch):
    asked = []

    def head(url, timeout):
        asked.append((url, timeout))
        if len(asked) > 1:
            raise OSError("Name or service not known\nmore")

    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: types.SimpleNamespace(head=head))
    assert sources.why_unreachable() == "" and sources.why_unreachable() == "Name or service not known"
    assert asked == [(huggingface_hub.constants.ENDPOINT, sources.HUB_SECONDS)] * 2
