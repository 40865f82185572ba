"""CIFAR-10 from any form that it comes in, as the same two arrays.

60,000 photographs of 32 x 32 pixels in ten classes: 50,000 to train on (5,000 of each class) and 10,000 to test with (1,000 of
each). Known forms: the official Python batches and the official binary batches, unpacked or as the archive, and a packed form of
three `.npz` files of filtered pixels, which compress better than the pixels themselves.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from jax import Array

from plural_jax.data.files import DATA_VARIABLE, cache_folder, check_digest, download, locate
from plural_jax.data.unpickling import load_arrays
from plural_jax.process import Meter

#: Names of the ten classes; label c is `CLASSES[c]`.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Split = Literal["train", "test"]
_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_PIXELS = 3 * 32 * 32
_PACKED = {"train": ("train_0.npz", "train_1.npz"), "test": ("test.npz",)}
_ARCHIVES = (".tar.gz", ".tgz", ".tar")

Images = TypeVar("Images", np.ndarray, Array)


class ImageData(NamedTuple):
    """Images with labels.

    Attributes:
        images: uint8 [n, 32, 32, 3]: rows from the top, columns from the left, red, green, blue.
        labels: uint8 [n], from 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


def cifar10(
    path: str | os.PathLike[str] | None = None,
    split: Split = "train",
    *,
    verify: bool = True,
    progress: bool | Meter = True,
) -> ImageData:
    """CIFAR-10 in its original order, from this machine or else from the network.

    Looked for in this order: `path`; the folder that the environment variable `PLURAL_JAX_DATA` names; the cache folder
    (`plural_jax` in `$XDG_CACHE_HOME` or `~/.cache`); each itself and its subfolder `cifar10`. Where none of them has it, the
    official Python archive (170 MB) is downloaded into the cache folder.

    Args:
        path: a folder or a `.tar.gz`; when given, nothing else is tried. A folder holds the unpacked official batches (or
            `cifar-10-batches-py`, `cifar-10-batches-bin`), an official archive under its own name, or the packed files
            `train_0.npz`, `train_1.npz`, `test.npz` with `residual`, uint8 [3, n, 32, 32] (red less green, green, blue less
            green, each differenced along rows and columns modulo 256), and `labels`, uint8 [n].
        split: "train" or "test".
        verify: compare official archives and batches with their MD5. The packed form has no official checksums.
        progress: of a download: True for a bar on standard error, False for none, or a `Meter`.

    Returns:
        50,000 or 10,000 images with their labels.

    Raises:
        FileNotFoundError: `path` without the images of this split, or with only some of their files; `PLURAL_JAX_DATA` that names
            no folder.
        ConnectionError: found nowhere, and the download failed.
        ValueError: an unknown split; another checksum, or content that is not of the form.

    Example:
        >>> import pathlib, tempfile
        >>> from plural_jax.data import CLASSES, cifar10
        >>> with tempfile.TemporaryDirectory() as folder:  # in place of the real files, one black image
        ...     written = (pathlib.Path(folder) / "test_batch.bin").write_bytes(bytes([8]) + bytes(3072))
        ...     images, labels = cifar10(folder, split="test", verify=False)
        >>> images.shape, CLASSES[labels[0]]
        ((1, 32, 32, 3), 'ship')

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009),
        https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    if split not in _PACKED:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    read = locate("cifar10", f"CIFAR-10 {split} images", path, partial(_recognize, split))
    if read is None:
        folder = cache_folder() / "cifar10"
        archive = download(
            _URL,
            folder / _PYTHON.archive,
            md5=_PYTHON.archive_md5,
            progress=progress,
            instead=f"fetch it on another machine and give its path as path, or put it into {folder} or the folder that the "
            f"environment variable {DATA_VARIABLE} names",
        )
        read = partial(_read_archive, archive, split)
    return read(verify)


def to_signed(images: Images) -> Images:
    """Bytes as numbers in [-1, 1], the form of images everywhere else.

    `x = b / 127.5 - 1`

    Args:
        images: NumPy or JAX uint8 [...].

    Returns:
        float32 [...].

    Raises:
        ValueError: images that are not uint8.

    Example:
        >>> to_signed(jnp.array([0, 51, 255], jnp.uint8)).round(3).tolist()
        [-1.0, -0.6000000238418579, 1.0]
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, from 0 to 255, got {images.dtype}.")
    # One after another and in place where the array allows it: all training images take 600 MB.
    signed = images.astype(np.float32)
    signed /= np.float32(127.5)
    signed -= np.float32(1)
    return signed


def to_bytes(images: Images) -> Images:
    """Numbers in [-1, 1] as bytes, the nearest ones; exactly the inverse of `to_signed`.

    `b = round(127.5 (x + 1))`, and 0 or 255 for x outside of [-1, 1]

    Args:
        images: NumPy or JAX floating-point [...]; NaN has no byte.

    Returns:
        uint8 [...].

    Raises:
        ValueError: images that are not floating-point.

    Example:
        >>> to_bytes(jnp.array([-1.0, -0.6, 0.0, 1.0, 1.7])).tolist()
        [0, 51, 128, 255, 255]
    """
    numbers: Any = images.__array_namespace__()
    if not numbers.isdtype(images.dtype, "real floating"):
        raise ValueError(f"images must be floating-point, from -1 to 1, got {images.dtype}.")
    scaled = (images.astype(np.float32) + np.float32(1)) * np.float32(127.5)
    return numbers.clip(numbers.round(scaled), np.float32(0), np.float32(255)).astype(np.uint8)


@dataclass(frozen=True)
class _Official:
    """One of the official forms: names and MD5 of its files, and how a batch is read."""

    folder: str
    archive: str
    archive_md5: str
    batches: dict[str, dict[str, str]]
    read: Callable[[bytes, str], ImageData]


def _python_batch(content: bytes, told: str) -> ImageData:
    """A pickled dictionary: `data`, uint8 [n, 3072], and `labels`, a list."""
    batch = load_arrays(io.BytesIO(content), told)
    # Python 2 wrote the names as bytes.
    named = {_name(key): value for key, value in batch.items()} if isinstance(batch, dict) else {}
    pixels, labels = named.get("data"), named.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise ValueError(f"{told} must hold data, uint8 [n, {_PIXELS}].")
    labels = np.asarray(labels)
    if labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"{told} must hold labels, one whole number for each of its {len(pixels)} images.")
    return _checked(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, told)


def _name(key: Any) -> Any:
    return key.decode("latin1") if isinstance(key, bytes) else key


def _binary_batch(content: bytes, told: str) -> ImageData:
    """Rows of one label and 3,072 pixels, a byte each."""
    if len(content) % (1 + _PIXELS):
        raise ValueError(f"{told} must hold rows of {1 + _PIXELS} bytes, but has {len(content)} bytes.")
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return _checked(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0], told)


def _packed(file: Path) -> ImageData:
    """Undo the filter: sums along rows and columns, then green added to red and blue, all modulo 256."""
    told = f"{str(file)!r}"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            residual, labels = arrays["residual"], arrays["labels"]
    except (KeyError, IndexError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{told} cannot be read as packed CIFAR-10 images ({error}).") from None
    n = len(labels) if labels.ndim == 1 else -1
    for name, array, shape in (("residual", residual, (3, n, 32, 32)), ("labels", labels, (n,))):
        if array.dtype != np.uint8 or array.shape != shape:
            expected = "[3, n, 32, 32]" if name == "residual" else "[n]"
            raise ValueError(f"{told} must hold {name}, uint8 {expected}, got {array.dtype} {list(array.shape)}.")
    planes = np.cumsum(residual, axis=2, dtype=np.uint8)
    np.cumsum(planes, axis=3, dtype=np.uint8, out=planes)
    planes[0] += planes[1]
    planes[2] += planes[1]
    return _checked(planes.transpose(1, 2, 3, 0), labels, told)


def _checked(images: np.ndarray, labels: np.ndarray, told: str) -> ImageData:
    if labels.size and not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise ValueError(f"{told} must hold labels from 0 to 9, got labels from {labels.min()} to {labels.max()}.")
    return ImageData(np.ascontiguousarray(images), labels.astype(np.uint8))


_PYTHON = _Official(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    batches={
        "train": {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
    },
    read=_python_batch,
)
_BINARY = _Official(
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
    batches={
        "train": {
            "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
            "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
            "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
            "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
            "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        },
        "test": {"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"},
    },
    read=_binary_batch,
)
_FORMS = (_PYTHON, _BINARY)


def _recognize(split: Split, place: Path) -> Callable[[bool], ImageData] | None:
    """How to read the split at a place, or None where nothing of it lies."""
    if place.is_file():
        return partial(_read_archive, place, split) if place.name.endswith(_ARCHIVES) else None
    for form in _FORMS:
        for folder in (place, place / form.folder):
            if any((folder / name).is_file() for name in form.batches[split]):
                return partial(_read_folder, form, folder, split)
    if any((place / name).is_file() for name in _PACKED[split]):
        return partial(_read_packed, place, split)
    for form in _FORMS:
        if (place / form.archive).is_file():
            return partial(_read_archive, place / form.archive, split)
    return None


def _read_folder(form: _Official, folder: Path, split: Split, verify: bool) -> ImageData:
    files = _complete(folder, form.batches[split])

    def batches() -> Iterator[ImageData]:
        for file, md5 in zip(files, form.batches[split].values(), strict=True):
            content, told = file.read_bytes(), f"{str(file)!r}"
            if verify:
                check_digest(content, told, md5=md5)
            yield form.read(content, told)

    return _joined(batches())


def _read_packed(folder: Path, split: Split, verify: bool) -> ImageData:
    return _joined(map(_packed, _complete(folder, _PACKED[split])))


def _complete(folder: Path, names: Any) -> list[Path]:
    """The files of these names, all of which must be there."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{str(folder)!r} holds only a part of CIFAR-10: {', '.join(missing)} is missing.")
    return [folder / name for name in names]


def _read_archive(archive: Path, split: Split, verify: bool) -> ImageData:
    """Batches out of a `.tar.gz`; nothing is unpacked to the disk."""
    told = f"{str(archive)!r}"
    if verify:
        check_digest(archive, told, md5=[form.archive_md5 for form in _FORMS])
    wanted = {name for form in _FORMS for name in form.batches[split]}
    try:
        with tarfile.open(archive) as members:
            found = {
                Path(member.name).name: members.extractfile(member).read()  # type: ignore[union-attr]
                for member in members
                if member.isfile() and Path(member.name).name in wanted
            }
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{told} cannot be read as an archive ({error}).") from None
    for form in _FORMS:
        if set(found) >= set(form.batches[split]):
            return _joined(form.read(found[name], f"{told}, {name},") for name in form.batches[split])
    raise FileNotFoundError(f"{told} holds only a part of the CIFAR-10 {split} batches, or none.")


def _joined(parts: Any) -> ImageData:
    images, labels = zip(*parts, strict=True)
    return ImageData(np.concatenate(images), np.concatenate(labels))
