"""Frozen dataclasses that are JAX pytrees.

`jax.tree_util.register_dataclass` rebuilds an object through its constructor, so a constructor that validates and
converts its arguments would run again inside every transformation, on placeholders. Here unflattening restores the
fields as they are and the constructor runs once, when a person calls it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

T = TypeVar("T")


def static_field(**kwargs: Any) -> Any:
    """A field that is part of the structure: hashed by `jit`, never traced."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static_field))
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and a pytree whose leaves are its non-static fields."""
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    leaves = tuple(f.name for f in fields if not f.metadata.get("static", False))
    statics = tuple(f.name for f in fields if f.metadata.get("static", False))

    def flatten_with_keys(obj: T) -> tuple[Any, Any]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(obj, name)) for name in leaves]
        return children, tuple(getattr(obj, name) for name in statics)

    def unflatten(aux: tuple[Any, ...], children: Any) -> T:
        obj = object.__new__(cls)
        for name, value in zip(leaves + statics, tuple(children) + tuple(aux), strict=True):
            object.__setattr__(obj, name, value)
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    return cls


def set_field(obj: Any, name: str, value: Any) -> None:
    """Store a converted argument on a frozen dataclass; only for use in `__post_init__`."""
    object.__setattr__(obj, name, value)


def is_key(leaf: Any) -> bool:
    """Whether a leaf holds typed PRNG keys."""
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_host(leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array; of a typed key, its data."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
