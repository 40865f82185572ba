"""A run on disk: what is needed to go on after a kill at any moment, saved by Orbax after every piece of the run.

The folder holds `run.json`, which says which run it is, and `rounds/N`: the state and the trace after N rounds, for the last two
pieces. Orbax writes a checkpoint under another name and renames it; each carries a hash of its contents besides, so that one
damaged later is noticed and the one before it used. Only arrays are saved. Their structure (which NamedTuple, which key type)
comes from tracing the first piece of the run that asks for them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax._pytree import is_key, to_host

_KIND = "plural_jax run"
#: Checkpoints that stay on disk: the newest, and one in case that it is damaged.
_KEEP = 2


class RunStore:
    """The checkpoints of one run.

    Args:
        path: a folder that does not exist, is empty, or holds the same run begun earlier.
        settings: which run it is, from `describe`.
        outputs: shapes and types of the state and the trace that one piece returns, as a pair of pytrees.
        last_only: the trace is that of the last piece, not all pieces joined.

    Raises:
        ValueError: the folder holds something else, or another run.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], outputs: Any, last_only: bool) -> None:
        self.path = Path(path).expanduser().absolute()
        self._shown = str(path)
        self._outputs, self._last_only = outputs, last_only
        self._trace: list[np.ndarray] | None = None
        # As it will be read back, so that it can be compared.
        settings = json.loads(json.dumps({"kind": _KIND, **settings}))
        self._identity = json.dumps(settings, sort_keys=True).encode()
        written, partial = self.path / "run.json", self.path / "run.json.partial"
        if self.path.exists() and not (self.path.is_dir() and {p.name for p in self.path.iterdir()} <= {partial.name}):
            self._check(written, settings)
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(settings, indent=1))
            os.replace(partial, written)

    def _check(self, written: Path, settings: dict[str, Any]) -> None:
        """Refuse a folder that does not hold this run."""
        try:
            found = json.loads(written.read_text())
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or found.get("kind") != _KIND:
            raise ValueError(
                f"checkpoint={self._shown!r} exists and is not a run; choose a folder that does not exist."
            )
        if found != settings:
            detail = "; ".join(_differences(found, settings))
            raise ValueError(
                f"checkpoint={self._shown!r} holds another run ({detail}); choose another folder or delete it."
            )

    @contextmanager
    def _manager(self) -> Iterator[Any]:
        import orbax.checkpoint as ocp  # slow to import

        logger = logging.getLogger("absl")  # Orbax reports every step of its work there
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEEP, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        try:
            with ocp.CheckpointManager(self.path / "rounds", options=options) as manager:
                yield manager
        finally:
            logger.setLevel(level)

    def newest(self) -> tuple[int, Any, Any] | None:
        """The newest checkpoint that can be read: finished rounds, state and trace; None where there is none."""
        if not (self.path / "rounds").is_dir():
            return None
        with self._manager() as manager:
            for finished in sorted(manager.all_steps(), reverse=True):
                try:
                    return finished, *self._load(manager, finished)
                except Exception as error:  # damage shows in many ways, and none of them should stop the run
                    reason = str(error).split("\n")[0][:200]
                    warnings.warn(
                        f"checkpoint={self._shown!r}: what was saved after round {finished} cannot be read "
                        f"({type(error).__name__}: {reason}); the run goes on from before it.",
                        stacklevel=3,
                    )
        return None

    def _load(self, manager: Any, finished: int) -> tuple[Any, Any]:
        import orbax.checkpoint as ocp

        saved = manager.restore(finished, args=ocp.args.StandardRestore())
        rows = int(saved["rows"])
        leaves, trees = [], []
        for name, outputs in zip(("state", "trace"), self._outputs, strict=True):
            described, structure = jax.tree.flatten(outputs)
            arrays = []
            for i, leaf in enumerate(described):
                raw = _raw(leaf)
                shape = raw.shape if name == "state" else (rows, *raw.shape[1:])
                # Arrays of size zero are not saved.
                arrays.append(np.asarray(saved[name].get(str(i), np.zeros(shape, raw.dtype))))
            trees.append(jax.tree.unflatten(structure, [_place(a, d) for a, d in zip(arrays, described, strict=True)]))
            leaves.append(arrays)
        if not np.array_equal(saved["digest"], self._digest(finished, *leaves)):
            raise ValueError("its contents have changed since it was written")
        self._trace = leaves[1]
        return trees[0], trees[1]

    def save(self, finished: int, state: Any, piece: Any) -> None:
        """Save the state after `finished` rounds and the trace so far, of which `piece` is new."""
        import orbax.checkpoint as ocp

        new = [to_host(leaf) for leaf in jax.tree.leaves(piece)]
        if self._trace is None or self._last_only:
            self._trace = new
        else:
            self._trace = [np.concatenate(pair) for pair in zip(self._trace, new, strict=True)]
        leaves = [to_host(leaf) for leaf in jax.tree.leaves(state)]
        tree: dict[str, Any] = {
            name: {str(i): a for i, a in enumerate(arrays) if a.size}
            for name, arrays in (("state", leaves), ("trace", self._trace))
        }
        tree["rows"] = np.asarray(len(self._trace[0]) if self._trace else 0)
        tree["digest"] = self._digest(finished, leaves, self._trace)
        with self._manager() as manager:
            for step in manager.all_steps():
                if step >= finished:  # could not be read
                    manager.delete(step)
            manager.save(finished, args=ocp.args.StandardSave(tree))

    def _digest(self, finished: int, *groups: list[np.ndarray]) -> np.ndarray:
        digest = hashlib.sha256(self._identity + str(finished).encode())
        for group in groups:
            for array in group:
                _update(digest, array)
        return np.frombuffer(digest.digest(), np.uint8)


def describe(
    process: Any, state: Any, key: Array | None, save: Any, traced: Any, **numbers: int | str
) -> dict[str, Any]:
    """What makes a run this one and no other, in plain text, numbers and hashes.

    Args:
        process: a `Process` whose functions are `Partial`.
        state: where it starts.
        key: PRNG key, or None.
        save: the save policy as the caller gave it.
        traced: the first piece of the run, traced; what no argument shows, such as a number inside a function, is in it.
        **numbers: further arguments, as they are.
    """
    from plural_jax import __version__

    return {
        "process functions": _functions(process),
        "process": _leaves(process),
        "state": _leaves(state),
        "key": "none" if key is None else f"{jax.random.key_impl(key)} {jax.random.key_data(key).tolist()}",
        "save": save if isinstance(save, str) else _name(save),
        **numbers,
        "versions": {"jax": jax.__version__, "plural_jax": __version__},
        "program": _program(traced.jaxpr),
    }


def _differences(there: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One phrase for each argument that differs."""
    phrases = []
    for name, new in now.items():
        old = there.get(name)
        if old == new or name == "program":
            continue
        if name == "process functions" and old:
            gone, come = ([f for f in x if f not in y] for x, y in ((old, new), (new, old)))
            phrases.append(
                f"process has {', '.join(gone) or 'no other function'} there "
                f"and {', '.join(come) or 'no other function'} now"
            )
        elif name in ("process", "state") and old:
            phrases.append(f"{name} has {_differing_leaves(old, new)}")
        else:
            phrases.append(f"{name} is {old} there and {new} now")
    return phrases or ["the program of process or save is another one: its code, or a number inside a function"]


def _differing_leaves(old: dict[str, str], new: dict[str, str]) -> str:
    def kind(described: str | None) -> str:
        return described.split()[0] if described else "absent"

    where = [path for path in dict.fromkeys((*new, *old)) if old.get(path) != new.get(path)]
    more = f" and {len(where) - 3} more" if len(where) > 3 else ""
    if all(kind(old.get(path)) == kind(new.get(path)) for path in where):
        return f"other numbers in {', '.join(where[:3])}{more}"
    shown = [f"{path} {kind(old.get(path))} there and {kind(new.get(path))} now" for path in where[:3]]
    return f"other arrays: {', '.join(shown)}{more}"


def _leaves(tree: Any) -> dict[str, str]:
    """Type, shape and hash of each leaf, by its path."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array, digest = to_host(leaf), hashlib.sha256()
        _update(digest, array)
        where = jax.tree_util.keystr(path).replace("<flat index ", "").replace(">", "")
        shape = ",".join(str(n) for n in np.shape(leaf))
        found[where or "value"] = f"{getattr(leaf, 'dtype', array.dtype)}[{shape}] {digest.hexdigest()[:16]}"
    return found


def _functions(tree: Any) -> list[str]:
    """The names of the functions inside the `Partial`s of a tree."""
    names = []
    for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Partial)):
        if isinstance(leaf, Partial):
            names += [_name(leaf.func), *_functions((leaf.args, leaf.keywords))]
    return names


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _program(closed: Any) -> str:
    """A hash of a traced program and of the arrays in it."""
    # Printed programs may hold addresses of Python objects, which differ between runs.
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(closed)).encode())
    for constant in _constants(closed):
        _update(digest, to_host(constant))
    return digest.hexdigest()[:16]


def _constants(program: Any) -> Iterator[Any]:
    """The arrays that the functions of a program closed over, which are not printed with it."""
    yield from getattr(program, "consts", ())
    for equation in program.eqns:
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(part, "eqns"):
                    yield from _constants(part)


def _update(digest: Any, array: np.ndarray) -> None:
    digest.update(f"{array.dtype}{array.shape}".encode())
    # As bytes, because buffers of extended types such as bfloat16 have no format.
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _raw(described: Any) -> Any:
    """Shape and type of what `_host` makes of a leaf."""
    return jax.eval_shape(jax.random.key_data, described) if is_key(described) else described


def _place(array: np.ndarray, described: Any) -> Array:
    """A saved array as the leaf it was, on the default device."""
    if is_key(described):
        kinds: list[Any] = []
        jax.eval_shape(lambda key: kinds.append(jax.random.key_impl(key)), described)  # a description has none to tell
        return jax.random.wrap_key_data(jnp.asarray(array), impl=kinds[0])
    if described.weak_type:  # it came from a Python number and gives way to other types, as it must again
        weak = jnp.full(array.shape, array.dtype.type(0).item())
        if weak.dtype == array.dtype:
            return weak.at[...].set(array)
    return jnp.asarray(array)
