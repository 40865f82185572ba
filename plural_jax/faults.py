"""Why a run cannot be trusted: codes that compiled code can carry, and the sentences that people read.

Compiled code cannot raise. A stochastic process keeps the first thing that went wrong as `fault` in its state and its info, and
`pj.run` and `pj.sweep` raise when they see it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from plural_jax import _validate

BAD_REWARD, BAD_MODEL, NO_ROOM = 1, 2, 3

_MESSAGES = {
    BAD_REWARD: "the reward was NaN or infinite for a candidate; it must be finite for whatever the model can make",
    BAD_MODEL: "the model has parameters that are NaN",
    NO_ROOM: "accumulate or grow has room for fewer rounds than were run; give it the number of rounds",
}

#: What the last reward on the host that failed has raised.
_raised: list[Exception] = []


def remember(error: Exception) -> None:
    """Keep what a reward on the host raises; on its way through compiled code only a text of it remains."""
    _raised[:] = [error]


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Raise what a reward on the host raised, where JAX would give pages about the callback that it was.

    Raises:
        ValueError: with the reward's own error as its cause.
    """
    _raised.clear()
    try:
        yield
    except jax.errors.JaxRuntimeError:
        if not _raised:
            raise
        cause = _raised.pop()
        raise ValueError(f"the reward, called on the host with NumPy arrays, failed: {_told(cause)}") from cause


def _told(error: Exception) -> str:
    name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"{name}{error}"


def check(fault: Any, where: str = "") -> None:
    """Raise for the first code that is not zero; what is traced passes unread.

    Raises:
        ValueError: with what went wrong.
    """
    codes = _validate.concrete(fault)
    if codes is not None and codes.any():
        raise ValueError(f"{_MESSAGES[int(codes[codes != 0].flat[0])]}{where}.")


def check_state(state: Any) -> None:
    """`check` for a state that has a `fault`."""
    if hasattr(state, "fault"):
        check(state.fault)


def check_variable(name: str, values: np.ndarray) -> None:
    """`check` for one saved variable of a sweep, which is a fault if it is called so."""
    if name.rsplit(".", 1)[-1] == "fault":
        check(values, f" (in {int(np.count_nonzero(values))} of {values.size} saved rounds of a batch)")
