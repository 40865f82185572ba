"""Arrays with PyTorch's names, read without PyTorch.

A `.pt` file is a pickle, and loading a pickle can run any program. Here an unpickler reads it that knows ordered dictionaries and
tensors and nothing else, and even those only as descriptions: name of the storage, offset, sizes and strides. The numbers are
then read from the file and every description is checked against the length of its storage.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

#: Which types of numbers the storages of a file hold.
_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
#: Names under which training programs save a state dict beside other things.
_INSIDE = ("state_dict", "model_state_dict", "model", "net")
#: What files from before PyTorch 1.6, which are no zip archives, begin with.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read the named arrays of a network from `.npz`, `.safetensors`, or PyTorch's `.pt`, `.pth` and `.th`.

    The format is recognized by the file's first bytes. Of a PyTorch file only tensors are read, never a program; a checkpoint
    that keeps a state dict beside other things under `state_dict`, `model_state_dict`, `model` or `net` gives that one. A
    prefix `module.` that all names share, left by data-parallel training, is removed.

    Args:
        path: of the file.

    Returns:
        Arrays by name, in the types and the order that the file has.

    Raises:
        ValueError: no such file; another format; a PyTorch file that holds more than tensors, or is damaged.

    Example:
        >>> import numpy as np, os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "weights.npz")
        ...     np.savez(path, **{"module.fc.weight": np.ones((2, 3))})
        ...     print({name: array.shape for name, array in read_state_dict(path).items()})
        {'fc.weight': (2, 3)}
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path={str(path)!r} is not a file.")
    with path.open("rb") as file:
        start = file.read(9)
    try:
        if start.startswith(b"PK\x03\x04"):
            arrays = _read_zip(path)
        elif path.suffix == ".safetensors" or start[8:] == b"{":
            arrays = _read_safetensors(path)
        elif start.startswith(b"\x80"):
            arrays = _read_old(path)
        else:
            raise _RefusedError("is neither .npz nor .safetensors nor a file of torch.save")
    except _RefusedError as error:
        raise ValueError(f"path={str(path)!r} {error}.") from None
    prefix = "module."
    if arrays and all(name.startswith(prefix) for name in arrays):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays


class _RefusedError(Exception):
    """Why a file is not read, as the end of a sentence that begins with its path."""


class _Storage(NamedTuple):
    """A run of numbers in the file, described."""

    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A view of a storage, described."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *unused: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise _RefusedError("holds a tensor without a storage")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _parameter(data: Any, *unused: Any) -> Any:
    return data


class _Numbers(NamedTuple):
    """The type of a storage."""

    dtype: np.dtype


class _Unpickler(pickle.Unpickler):
    """Knows tensors and ordered dictionaries; every other name in a pickle is refused."""

    _KNOWN: dict[tuple[str, str], Any] = {  # noqa: RUF012 - never changed
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        **{("torch", name): _Numbers(dtype) for name, dtype in _STORAGES.items()},
    }

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._KNOWN[module, name]
        except KeyError:
            raise _RefusedError(f"asks for {module}.{name}, and only tensors are read from PyTorch files") from None

    def persistent_load(self, identifier: Any) -> _Storage:
        kind, numbers, key, _, size, *view = identifier
        known = kind == "storage" and isinstance(numbers, _Numbers) and isinstance(key, str)
        if not known or any(v is not None for v in view):
            raise _RefusedError("holds a storage of an unknown kind")
        storage = _Storage(key, numbers.dtype, int(size))
        if self.storages.setdefault(key, storage) != storage:
            raise _RefusedError(f"is damaged: storage {key} is described in two ways")
        return storage


def _unpickle(file: IO[bytes]) -> tuple[Any, dict[str, _Storage]]:
    """What a pickle holds, and the storages that it mentions."""
    unpickler = _Unpickler(file)
    try:
        return unpickler.load(), unpickler.storages
    except _RefusedError:
        raise
    except Exception as error:  # a damaged or malicious pickle fails in any way it likes
        raise _RefusedError(f"is no readable PyTorch file ({type(error).__name__}: {error})") from None


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if not pickles:
                return _read_npz(path)
            folder = pickles[0].removesuffix("data.pkl")
            if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
                raise _RefusedError("was written on a machine with another byte order")
            with archive.open(pickles[0]) as file:
                found, _ = _unpickle(file)

            def read(storage: _Storage) -> np.ndarray:
                name = f"{folder}data/{storage.key}"
                if name not in archive.namelist():
                    raise _RefusedError(f"is damaged: it has no storage {storage.key}")
                # Before it is read: a small archive may claim to unpack to anything.
                if archive.getinfo(name).file_size != storage.size * storage.dtype.itemsize:
                    raise _RefusedError(f"is damaged: storage {storage.key} has not the length that its tensors need")
                return np.frombuffer(archive.read(name), storage.dtype)

            return _arrays(found, read)
    except (zipfile.BadZipFile, EOFError) as error:
        raise _RefusedError(f"is damaged ({error})") from None


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except ValueError as error:
        raise _RefusedError(f"cannot be read as .npz ({error})") from None


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise _RefusedError("needs the package safetensors, which is not installed") from None
    try:
        return load_file(path)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that NumPy has not
        raise _RefusedError(f"cannot be read as .safetensors ({error})") from None


def _read_old(path: Path) -> dict[str, np.ndarray]:
    """Files from before PyTorch 1.6: pickles and then the numbers, one storage after another."""
    longest = path.stat().st_size
    with path.open("rb") as file:
        if _unpickle(file)[0] != _MAGIC or _unpickle(file)[0] != _PROTOCOL:
            raise _RefusedError("is a pickle, but not one of torch.save")
        _unpickle(file)  # what machine it was
        found, storages = _unpickle(file)
        order, _ = _unpickle(file)
        if not isinstance(order, list) or not set(storages) <= set(order):
            raise _RefusedError("is damaged: it has not every storage")
        read: dict[str, np.ndarray] = {}
        for key in order:
            if key not in storages:  # its numbers cannot be skipped, because only tensors say of which type they are
                raise _RefusedError(f"is damaged: no tensor belongs to storage {key}")
            storage, length = storages[key], file.read(8)
            if len(length) != 8 or struct.unpack("<q", length)[0] != storage.size:
                raise _RefusedError(f"is damaged: storage {key} has not the length that its tensors need")
            wanted = storage.size * storage.dtype.itemsize
            raw = file.read(min(wanted, longest))
            if len(raw) != wanted:
                raise _RefusedError("is damaged: it ends too early")
            read[key] = np.frombuffer(raw, storage.dtype)
    return _arrays(found, lambda storage: read[storage.key])


def _state_dict(found: Any) -> dict[str, _Tensor]:
    """The dictionary of tensors in what a file held."""
    if isinstance(found, dict):
        for name in _INSIDE:
            if isinstance(found.get(name), dict):
                found = found[name]
                break
    if not isinstance(found, dict) or not found:
        raise _RefusedError(f"holds no dictionary of tensors but {_kind(found)}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _RefusedError(f"holds {_kind(value)} under {name!r}, where a tensor belongs")
    return found


def _kind(value: Any) -> str:
    return "an empty dictionary" if value == {} else f"a {type(value).__name__}".replace("_Tensor", "tensor")


def _arrays(found: Any, read: Callable[[_Storage], np.ndarray]) -> dict[str, np.ndarray]:
    """Numbers for descriptions, each storage read once."""
    known: dict[str, np.ndarray] = {}
    arrays = {}
    for name, (storage, offset, shape, strides) in _state_dict(found).items():
        if storage.key not in known:
            known[storage.key] = read(storage)
        flat = known[storage.key]
        # Without these checks a description could point at memory outside of its storage, or make a huge copy of little.
        wrong = len(shape) != len(strides) or min((offset, *shape, *strides)) < 0
        size = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=not wrong))
        if wrong or size > flat.size or (size and last >= flat.size):
            raise _RefusedError(f"is damaged: tensor {name!r} reaches outside of its storage")
        view = flat[offset:] if size else flat[:0]
        bytes_ = tuple(step * flat.itemsize for step in strides)
        arrays[name] = np.lib.stride_tricks.as_strided(view, shape, bytes_, writeable=False).copy()
    return arrays
