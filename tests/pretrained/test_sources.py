import argparse
import pickle
import sys
import types
from pathlib import Path

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.numpy import save_file

from tnt_jax.pretrained import sources

ARRAYS = {"patch_pos": np.arange(6, dtype=np.float32).reshape(1, 2, 3), "norm.weight": np.ones(3, np.float32)}


class FakeTensor:
    """What of a torch.Tensor the reader uses."""

    def __init__(self, array):
        self.array = array

    def detach(self):
        return self

    def float(self):
        return FakeTensor(self.array.astype(np.float32))

    def numpy(self):
        return self.array


@pytest.fixture
def fake_torch(monkeypatch):
    """PyTorch as far as the reader needs it; files are plain pickles. `calls` keeps torch.load's keyword arguments."""
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


@pytest.mark.parametrize("ending", sources.TORCH_SUFFIXES)
def test_pytorch_files_are_read_without_running_their_code(fake_torch, tmp_path, ending):
    check_arrays(sources.read_weights(write(tmp_path / f"w{ending}", tensors())))
    assert fake_torch.calls == [[argparse.Namespace], {"map_location": "cpu", "weights_only": True}]


@pytest.mark.parametrize(
    "keys, ema, taken",
    [
        (["model", "state_dict", "model_ema", "state_dict_ema"], True, "state_dict_ema"),
        (["model", "state_dict", "model_ema"], True, "model_ema"),
        (["model", "state_dict", "model_ema", "state_dict_ema"], False, "state_dict"),
        (["model"], True, "model"),
        (["model"], False, "model"),
    ],
)
def test_a_checkpoint_is_unwrapped_in_timms_order(fake_torch, tmp_path, keys, ema, taken):
    content = {key: tensors(offset) for offset, key in enumerate(keys)} | {"epoch": 3, "optimizer": {}}
    weights = sources.read_weights(write(tmp_path / "w.pth.tar", content), ema=ema)
    check_arrays(weights, keys.index(taken))
    assert repr(taken) in weights.source


def test_pytorch_files_without_weights_say_what_they_hold(fake_torch, tmp_path):
    with pytest.raises(ValueError, match="holds also epoch, state_dict_ema; averaged weights are read with ema=True"):
        sources.read_weights(write(tmp_path / "a.pth", {"epoch": 3, "state_dict_ema": tensors()}), ema=False)
    with pytest.raises(ValueError, match="holds a list, not a dictionary"):
        sources.read_weights(write(tmp_path / "b.pth", [1]))
    with pytest.raises(ValueError, match="holds nothing"):
        sources.read_weights(write(tmp_path / "c.pth", {"model": {}}))

    def refuse(path, **options):
        raise pickle.UnpicklingError("Unsupported global: os.system")

    fake_torch.load = refuse
    with pytest.raises(ValueError, match=r"d\.pth cannot be read .*weights_only=True.*os\.system"):
        sources.read_weights(write(tmp_path / "d.pth", {}))


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
    with pytest.raises(ValueError, match="weights_only=True"):
        sources.read_weights(tmp_path / "code.pth")


def test_bad_files_name_path_and_cause(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors: there is no such file"):
        sources.read_weights(tmp_path / "nowhere.safetensors")
    (tmp_path / "w.h5").touch()
    with pytest.raises(ValueError, match=r"w\.h5 is no weights file; known endings are \.safetensors"):
        sources.read_weights(tmp_path / "w.h5")
    (tmp_path / "half.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"half\.safetensors cannot be read as safetensors"):
        sources.read_weights(tmp_path / "half.safetensors")
    save_file({"layer1.0.conv1.weight": np.zeros(1, np.float32)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"neither timm's nor .* it holds layer1\.0\.conv1\.weight"):
        sources.read_weights(tmp_path / "resnet.safetensors")


def hub(monkeypatch, files, error=None):
    """A hub whose only repository has `files` (name -> path)."""
    asked = []

    def hf_hub_download(repository, file, revision=None):
        asked.append((repository, file, revision))
        if file not in files:
            raise error or EntryNotFoundError("no such entry")
        return str(files[file])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
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
        ("timm/none", LocalEntryNotFoundError("no"), "hub cannot be reached; check the network"),
        ("timm/none", OSError("401 Client Error"), "cannot be had from the hub: 401 Client Error"),
        ("tnt_s", EntryNotFoundError("no"), "give hf-hub:OWNER/NAME"),
    ],
)
def test_hub_errors_name_the_source_and_the_mend(monkeypatch, name, error, message):
    hub(monkeypatch, {}, error)
    with pytest.raises(ValueError, match=f"hf-hub:{name}.*{message}"):
        sources.read_weights(f"hf-hub:{name}")
