"""Named arrays from files: against PyTorch's own reader, and what is refused."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest

from plural_jax.models.classifiers import read_state_dict


def _torch_file(path, found, storages):
    """Write the zip format by hand; `found` may hold `_Pointer`s."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value.identifier if isinstance(value, _Pointer) else None

        def reducer_override(self, value):
            return value.reduced if isinstance(value, _Rebuilt) else NotImplemented

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(found)
    text = buffer.getvalue()
    for placeholder, real in ((_rebuild, b"torch._utils\n_rebuild_tensor_v2"), (FloatStorage, b"torch\nFloatStorage")):
        text = text.replace(f"{__name__}\n{placeholder.__name__}".encode(), real)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", text)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())


class _Pointer:
    def __init__(self, key, size):
        self.identifier = ("storage", FloatStorage, key, "cpu", size)


class FloatStorage:
    """Becomes torch.FloatStorage in the written pickle."""


def _rebuild(*arguments):
    raise AssertionError("only its name is written")


class _Rebuilt:
    def __init__(self, pointer, offset, shape, strides):
        self.reduced = (_rebuild, (pointer, offset, shape, strides, False, OrderedDict()))


def test_a_file_written_by_hand(tmp_path, rng):
    """Offsets, strides and two tensors in one storage, with no PyTorch at all."""
    flat = rng.normal(size=12).astype(np.float32)
    pointer = _Pointer("0", 12)
    found = OrderedDict(
        {
            "module.a": _Rebuilt(pointer, 2, (3, 2), (1, 3)),
            "module.b": _Rebuilt(pointer, 11, (), ()),
            "module.c": _Rebuilt(pointer, 0, (0, 5), (5, 1)),
        }
    )
    _torch_file(tmp_path / "x.pt", {"epoch": 3, "state_dict": found}, {"0": flat})
    arrays = read_state_dict(tmp_path / "x.pt")
    assert list(arrays) == ["a", "b", "c"] and arrays["c"].shape == (0, 5)
    np.testing.assert_array_equal(arrays["a"], flat[2:8].reshape(2, 3).T)
    assert arrays["b"] == flat[11] and arrays["a"].dtype == np.float32


@pytest.mark.parametrize(
    ("tensor", "size", "message"),
    [
        (lambda p: _Rebuilt(p, 0, (13,), (1,)), 12, "tensor 'a' reaches outside"),
        (lambda p: _Rebuilt(p, 5, (8,), (1,)), 12, "tensor 'a' reaches outside"),
        (lambda p: _Rebuilt(p, 5, (2,), (-3,)), 12, "tensor 'a' reaches outside"),
        (lambda p: _Rebuilt(p, -1, (2,), (1,)), 12, "tensor 'a' reaches outside"),
        (lambda p: _Rebuilt(p, 0, (1 << 40,), (0,)), 12, "tensor 'a' reaches outside"),
        (lambda p: _Rebuilt(p, 0, (2, 2), (1,)), 12, "tensor 'a' reaches outside"),
        (lambda p: _Rebuilt(p, 0, (2,), (1,)), 13, "storage 0 has not the length"),
        (lambda p: p, 12, "holds a _Storage under 'a', where a tensor belongs"),
        (lambda p: 7, 12, "holds a int under 'a', where a tensor belongs"),
    ],
)
def test_descriptions_that_do_not_fit(tmp_path, tensor, size, message):
    _torch_file(tmp_path / "x.pt", {"a": tensor(_Pointer("0", size))}, {"0": np.zeros(12, np.float32)})
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / "x.pt")


class _Malicious:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.mkdir, eval, getattr, __import__])
def test_programs_are_refused(tmp_path, function, zipped):
    target, path = tmp_path / "written", tmp_path / "x.pt"
    argument = {os.mkdir: str(target), eval: f"__import__('os').mkdir({str(target)!r})"}.get(function, "os")
    text = pickle.dumps({"a": _Malicious(function, argument)}, protocol=2)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", text)
    else:
        path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"asks for .*{function.__name__}, and only tensors are read"):
        read_state_dict(path)
    assert not target.exists()


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"hello world, this is no network")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "c.pt").write_bytes(b"\x80\x02garbage")
    np.savez(tmp_path / "d.npz", a=np.array([object()]))
    _torch_file(tmp_path / "e.pt", {}, {})
    (tmp_path / "f.npz").write_bytes(b"PK\x03\x04" + bytes(30))
    for name, message in (
        ("a.pt", "is neither .npz nor .safetensors nor a file of torch.save"),
        ("b.pt", "is a pickle, but not one of torch.save"),
        ("c.pt", "is no readable PyTorch file"),
        ("d.npz", "cannot be read as .npz"),
        ("e.pt", "holds no dictionary of tensors but an empty dictionary"),
        ("f.npz", "is damaged"),
        ("missing", "is not a file"),
    ):
        with pytest.raises(ValueError, match=f"{name}' {message}"):
            read_state_dict(tmp_path / name)


def test_numpy_files(tmp_path, rng):
    arrays = {"module.a": rng.normal(size=(2, 3)), "b": np.arange(3)}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    found = read_state_dict(str(tmp_path / "x.npz"))
    assert list(found) == ["module.a", "b"]  # not all names have the prefix
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_safetensors(tmp_path, rng):
    safetensors = pytest.importorskip("safetensors.numpy", reason="the package safetensors is not installed")
    arrays = {"module.a": rng.normal(size=(2, 3)).astype(np.float32), "module.b": np.arange(3)}
    for name in ("x.safetensors", "x.bin"):
        safetensors.save_file(arrays, tmp_path / name)
        found = read_state_dict(tmp_path / name)
        assert sorted(found) == ["a", "b"]
        np.testing.assert_array_equal(found["a"], arrays["module.a"])
    (tmp_path / "y.safetensors").write_bytes(b"nothing of that kind")
    with pytest.raises(ValueError, match=r"cannot be read as \.safetensors"):
        read_state_dict(tmp_path / "y.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_against_torch(tmp_path, zipped):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(5, 2))
    whole = torch.randn(6, 8)
    given = network.state_dict()
    given["view"], given["transposed"] = whole[2:4, 1:], whole.T
    given["parameter"] = torch.nn.Parameter(torch.randn(3))
    for dtype in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"):
        given[dtype] = (whole * 3).to(getattr(torch, dtype))
    for saved in (given, {"net": given, "epoch": 3, "optimizer": {"lr": 0.1, "momentum": [torch.zeros(2)]}}):
        torch.save(saved, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        found = read_state_dict(tmp_path / "x.pth")
        assert list(found) == list(given)
        for name, tensor in given.items():
            bfloat = tensor.dtype == torch.bfloat16
            assert found[name].dtype == (jnp.bfloat16 if bfloat else tensor.detach().numpy().dtype)
            expected = (tensor.float() if bfloat else tensor).detach().numpy()
            np.testing.assert_array_equal(found[name].astype(expected.dtype), expected)
    cut = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(cut[: len(cut) * 2 // 3])
    with pytest.raises(ValueError, match=r"is damaged|is no readable PyTorch file"):
        read_state_dict(tmp_path / "cut.pth")


def test_a_whole_module_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules\.linear\.Linear, and only tensors are read"):
        read_state_dict(tmp_path / "x.pt")
