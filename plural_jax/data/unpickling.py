"""Pickles that hold arrays and plain containers, read without running anything that they name.

Loading a pickle can call any function. Here the few names that NumPy writes stand for descriptions of arrays, every other name is
refused, and an array is made only after its description agrees with the number of its bytes.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np

#: Booleans, integers, real and complex numbers: types whose bytes are the values.
_NUMBERS = re.compile(r"[biufc]\d{1,2}")


class RefusedError(ValueError):
    """A pickle that holds more than arrays and plain containers, or is damaged."""


def load_arrays(file: IO[bytes], told: str) -> Any:
    """Read a pickle of dictionaries, lists, tuples, text, bytes, numbers and arrays of numbers.

    Args:
        file: opened for reading bytes; a pickle of any protocol, Python 2's too, whose strings come back as bytes.
        told: how the error message calls the file.

    Returns:
        What the pickle holds. Arrays are read-only.

    Raises:
        RefusedError: anything else in the pickle, a `ValueError`; nothing has been run then.

    Example:
        >>> import io
        >>> load_arrays(io.BytesIO(pickle.dumps({"labels": [6, 9]})), "the batch")
        {'labels': [6, 9]}
    """
    try:
        return _finished(_Unpickler(file, encoding="bytes").load())
    except RefusedError as error:
        raise RefusedError(f"{told} {error}.") from None
    except Exception as error:  # a damaged or malicious pickle fails in any way it likes
        raise RefusedError(f"{told} is no readable pickle ({type(error).__name__}: {error}).") from None


class _Type:
    """A type of numbers, described."""

    def __init__(self, code: Any) -> None:
        text = _text(code)
        if not _NUMBERS.fullmatch(text):
            raise RefusedError(f"holds an array of type {text!r}, and only arrays of numbers are read")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        _, order, *structure = state[:5]
        if any(part is not None for part in structure):
            raise RefusedError("holds an array of records, and only arrays of numbers are read")
        order = _text(order)
        if order not in ("<", ">", "|", "="):
            raise RefusedError(f"holds an array in the unknown byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """An array, described."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, raw = state
        self.array = _array(raw, kind, shape, "F" if by_columns else "C")


def _array(raw: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(kind, _Type) or not isinstance(raw, bytes | bytearray) or order not in ("C", "F"):
        raise RefusedError("holds an array that is not made of bytes")
    # Before anything is allocated: a short pickle may claim any shape.
    if min(shape, default=0) < 0 or math.prod(shape) * kind.dtype.itemsize != len(raw):
        raise RefusedError(f"is damaged: an array of shape {tuple(shape)} has {len(raw)} bytes")
    array = np.frombuffer(raw, kind.dtype).reshape(shape, order=order)
    array.flags.writeable = False
    return array


def _encoded(text: Any, encoding: Any) -> bytes:
    """How protocols before 3 write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise RefusedError("holds text in an unknown encoding")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocols before 3 write no bytes at all."""
    return b""


_CLASS = "numpy.ndarray"


def _empty(kind: Any, *unused: Any) -> _Array:
    if kind != _CLASS:
        raise RefusedError("holds an array of a class of its own")
    return _Array()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    if axes is not None:
        raise RefusedError("holds an array with an unknown order of axes")
    return _array(raw, kind, shape, order)


def _type(code: Any, *unused: Any) -> _Type:
    return _Type(code)


#: What the names in a pickle mean here; NumPy 2 writes `numpy._core` where NumPy 1 wrote `numpy.core`.
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _type,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _no_bytes,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Knows arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return _CLASS
        known = _KNOWN.get((module, name))
        if known is None:
            raise RefusedError(f"asks for {module}.{name}, and only arrays and plain containers are read from pickles")
        # A new function each time: a pickle can set attributes of what it is given, and must not change ours.
        return lambda *arguments: known(*arguments)


def _finished(value: Any) -> Any:
    """Arrays in place of their descriptions, at any depth."""
    if isinstance(value, _Array):
        if value.array is None:
            raise RefusedError("is damaged: an array has no numbers")
        return value.array
    if isinstance(value, dict):
        return {_finished(key): _finished(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finished(item) for item in value)
    if isinstance(value, np.ndarray | str | bytes | bytearray | int | float | None):
        return value
    raise RefusedError(f"holds a {type(value).__name__.lstrip('_').lower()} where data belongs")


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)
